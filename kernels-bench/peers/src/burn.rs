//! burn on the adapter that our own kernels run on.

use anyhow::{Context as _, Result, anyhow, ensure};
use burn_tensor::backend::Backend;
use burn_tensor::quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn_tensor::{Tensor, TensorData};
use burn_wgpu::graphics::AutoGraphicsApi;
use burn_wgpu::{Wgpu, WgpuDevice, init_setup};

use crate::{Make, Maker, Operands, Way, guarded};

/// Values that share a scale, as in our own formats.
const BLOCK: u8 = 32;

/// The adapter, or why burn cannot use it.
pub(crate) struct Adapter(Result<WgpuDevice, String>);

impl Adapter {
    /// Opens the adapter of this kind, which must have this name: a time on another one would
    /// compare devices, not libraries.
    pub(crate) fn open(kind: &str, name: &str) -> Self {
        let device = match kind {
            "discrete" => WgpuDevice::DiscreteGpu(0),
            "integrated" => WgpuDevice::IntegratedGpu(0),
            "virtual" => WgpuDevice::VirtualGpu(0),
            "software" => WgpuDevice::Cpu,
            "none" => return Self(Err("the device is no adapter".into())),
            _ => WgpuDevice::DefaultDevice,
        };
        let opened = guarded(|| {
            let setup = init_setup::<AutoGraphicsApi>(&device, Default::default());
            let found = setup.adapter.get_info().name;
            ensure!(found == name, "burn opens `{found}`, not `{name}`");
            Ok(device.clone())
        });
        Self(opened.map_err(|error| format!("{error:#}")))
    }
}

/// How the weights lie, and which operand they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `[n, k]`, transposed as a view.
    Rows,
    /// `[k, n]`, contiguous.
    Columns,
    /// `[n, k]` on the left of `xᵀ [k, 1]`: for one token the result is the same.
    Left,
}

/// A way of burn, before it has operands.
#[derive(Clone, Copy)]
struct Plan {
    layout: Layout,
    /// The values of quantised weights; `None` for f32.
    value: Option<QuantValue>,
}

impl Plan {
    fn name(self) -> String {
        let dtype = match self.value {
            None => "f32",
            Some(QuantValue::Q4S) => "q4",
            Some(_) => "q8",
        };
        let how = match self.layout {
            Layout::Rows => "x·Wᵀ",
            Layout::Columns => "x·W",
            Layout::Left => "W·xᵀ",
        };
        format!("{dtype} {how}")
    }
}

/// All ways of burn for `m` rows.
pub(crate) fn makers(adapter: &Adapter, m: usize) -> Vec<Maker> {
    let mut layouts = vec![Layout::Rows, Layout::Columns];
    if m == 1 {
        layouts.push(Layout::Left);
    }
    let values = [None, Some(QuantValue::Q8S), Some(QuantValue::Q4S)];
    let plans = values
        .into_iter()
        .flat_map(|value| layouts.iter().map(move |layout| Plan { layout: *layout, value }));
    plans
        .map(|plan| {
            let device = adapter.0.clone();
            let make: Make = Box::new(move |operands| {
                let device = device.clone().map_err(|reason| anyhow!(reason))?;
                Ok(Box::new(Burn::new(operands, plan, device)))
            });
            ("burn", plan.name(), make)
        })
        .collect()
}

struct Burn {
    plan: Plan,
    device: WgpuDevice,
    x: Tensor<Wgpu, 2>,
    w: Tensor<Wgpu, 2>,
    y: Option<Tensor<Wgpu, 2>>,
}

impl Burn {
    fn new(operands: &Operands, plan: Plan, device: WgpuDevice) -> Self {
        let Operands { m, n, k, .. } = *operands;
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<Wgpu, 2>::from_data(TensorData::new(values, shape), &device)
        };
        let x =
            tensor(operands.x.clone(), if plan.layout == Layout::Left { [k, m] } else { [m, k] });
        let w = match plan.layout {
            Layout::Columns => tensor(operands.transposed(), [k, n]),
            Layout::Rows | Layout::Left => tensor(operands.w.clone(), [n, k]),
        };
        let w = match plan.value {
            None => w,
            Some(value) => {
                let scheme = QuantScheme::default()
                    .with_value(value)
                    .with_level(QuantLevel::block([BLOCK]))
                    .with_store(QuantStore::PackedU32(0));
                w.quantize_dynamic(&scheme)
            }
        };
        Self { plan, device, x, w, y: None }
    }
}

impl Way for Burn {
    fn peer(&self) -> &'static str {
        "burn"
    }

    fn what(&self) -> String {
        self.plan.name()
    }

    fn multiply(&mut self) -> Result<()> {
        let (x, w) = (self.x.clone(), self.w.clone());
        self.y = Some(match self.plan.layout {
            Layout::Rows => x.matmul(w.transpose()),
            Layout::Columns => x.matmul(w),
            Layout::Left => w.matmul(x),
        });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Wgpu::<f32>::sync(&self.device).map_err(|error| anyhow!("{error:?}"))
    }

    fn result(&mut self) -> Result<Vec<f32>> {
        let y = self.y.clone().context("nothing was multiplied")?;
        y.into_data().to_vec::<f32>().map_err(|error| anyhow!("{error:?}"))
    }
}
