//! `gemm` and `candle` on the CPU.

use anyhow::Result;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module as _, Tensor};

use crate::{Make, Maker, Operands, Way};

/// All ways on the CPU.
pub(crate) fn makers() -> Vec<Maker> {
    let mut makers: Vec<Maker> = Vec::new();
    for transposed in [false, true] {
        let make: Make = Box::new(move |operands| Ok(Box::new(Gemm::new(operands, transposed))));
        makers.push(("gemm", Gemm::name(transposed).into(), make));
    }
    for kind in [Kind::Rows, Kind::Columns, Kind::Q8, Kind::Q4] {
        let make: Make = Box::new(move |operands| Ok(Box::new(Candle::new(operands, kind)?)));
        makers.push(("candle", kind.name().into(), make));
    }
    makers
}

/// The crate that our own references use.
struct Gemm {
    sizes: [usize; 3],
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    /// `w` is `[k, n]`.
    transposed: bool,
}

impl Gemm {
    fn new(operands: &Operands, transposed: bool) -> Self {
        let Operands { m, n, k, .. } = *operands;
        let w = if transposed { operands.transposed() } else { operands.w.clone() };
        Self { sizes: [m, n, k], x: operands.x.clone(), w, y: vec![0.0; m * n], transposed }
    }

    fn name(transposed: bool) -> &'static str {
        if transposed { "f32 cpu x·W" } else { "f32 cpu x·Wᵀ" }
    }
}

impl Way for Gemm {
    fn peer(&self) -> &'static str {
        "gemm"
    }

    fn what(&self) -> String {
        Self::name(self.transposed).into()
    }

    fn multiply(&mut self) -> Result<()> {
        let [m, n, k] = self.sizes;
        // Column and row strides of the right operand [k, n].
        let (col, row) = if self.transposed { (1, n) } else { (k, 1) };
        let (col, row) = (col as isize, row as isize);
        let [x, w] = [&self.x, &self.w].map(|values| values.as_ptr());
        let y = self.y.as_mut_ptr();
        let threads = gemm::Parallelism::Rayon(0);
        let (k_stride, n_stride) = (k as isize, n as isize);
        // SAFETY: x has m·k values, w n·k, y m·n, and these strides reach exactly them; y is
        // borrowed exclusively.
        unsafe {
            gemm::gemm(
                m, n, k, y, 1, n_stride, false, x, 1, k_stride, w, col, row, 0.0, 1.0, false,
                false, false, threads,
            );
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn result(&mut self) -> Result<Vec<f32>> {
        Ok(self.y.clone())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Rows,
    Columns,
    Q8,
    Q4,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Rows => "f32 cpu x·Wᵀ",
            Self::Columns => "f32 cpu x·W",
            Self::Q8 => "q8 cpu Q8_0",
            Self::Q4 => "q4 cpu Q4_0",
        }
    }
}

enum Weights {
    Dense(Tensor),
    Quantised(QMatMul),
}

struct Candle {
    kind: Kind,
    x: Tensor,
    w: Weights,
    y: Option<Tensor>,
}

impl Candle {
    fn new(operands: &Operands, kind: Kind) -> Result<Self> {
        let Operands { m, n, k, .. } = *operands;
        let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &Device::Cpu);
        let x = tensor(&operands.x, (m, k))?;
        let rows = tensor(&operands.w, (n, k))?;
        let quantised = |dtype| -> Result<Weights> {
            Ok(Weights::Quantised(QMatMul::from_qtensor(QTensor::quantize(&rows, dtype)?)?))
        };
        let w = match kind {
            Kind::Rows => Weights::Dense(rows.t()?),
            Kind::Columns => Weights::Dense(rows.t()?.contiguous()?),
            Kind::Q8 => quantised(GgmlDType::Q8_0)?,
            Kind::Q4 => quantised(GgmlDType::Q4_0)?,
        };
        Ok(Self { kind, x, w, y: None })
    }
}

impl Way for Candle {
    fn peer(&self) -> &'static str {
        "candle"
    }

    fn what(&self) -> String {
        self.kind.name().into()
    }

    fn multiply(&mut self) -> Result<()> {
        self.y = Some(match &self.w {
            Weights::Dense(w) => self.x.matmul(w)?,
            Weights::Quantised(w) => w.forward(&self.x)?,
        });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn result(&mut self) -> Result<Vec<f32>> {
        let y = self.y.as_ref().ok_or_else(|| anyhow::anyhow!("nothing was multiplied"))?;
        Ok(y.flatten_all()?.to_vec1()?)
    }
}
