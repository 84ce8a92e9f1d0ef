//! The loss from the row statistics, summed over the rows that count.
//!
//! out\[0\] (+)= sum of log(sum) + max - target,  out\[1\] (+)= number of counted rows
//!
//! | tensor  | shape      | dtype | role |
//! |---------|------------|-------|------|
//! | targets | \[rows\]   | u32   | in, [`IGNORE`] where a row does not count |
//! | stats   | [rows, 3]  | f32   | in: max, sum, target |
//! | out     | \[2\]      | f32   | out: nats, rows; also in, with `accumulate` |
//!
//! How: one workgroup, by lane and then by tree, in the same order each time.
//! Accuracy: a sum of non-negative terms in f32; the count is exact below 2^24 rows.
//! Cost: latency; 16 bytes a token.

use crate::util::SeededRng;

use super::{IGNORE, case_targets, reduce_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{uniform_f32, uniform_vec};

/// See the module.
pub struct CrossEntropyLoss;

crate::params! {
    /// Parameters of `cross_entropy_loss`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// 1: add to `out`; 0: overwrite it.
        accumulate: u32,
    }
}

/// Sums losses and counted rows into `out`.
pub fn dispatch<B>(params: Params, targets: B, stats: B, out: B) -> Dispatch<B> {
    Dispatch::new(&CrossEntropyLoss, Call::new(&params), vec![targets, stats, out])
}

impl Op for CrossEntropyLoss {
    fn name(&self) -> &'static str {
        "cross_entropy_loss"
    }

    fn shader(&self) -> &'static str {
        "loss/cross_entropy_loss.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("targets"), read("stats"), read_write("out")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        reduce_variants(call.params::<Params>().rows)
    }

    fn grid(&self, _: &Call, _: &Variant) -> [u32; 3] {
        [1, 1, 1]
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [targets, stats, out] = buffers else { unreachable!("three bindings") };
        let (mut loss, mut counted) = (0.0_f64, 0_u32);
        let rows = targets.u32().iter().zip(stats.f32().chunks(3)).take(p.rows as usize);
        for (_, stats) in rows.filter(|(target, _)| **target != IGNORE) {
            loss += f64::from(stats[1]).ln() + (f64::from(stats[0]) - f64::from(stats[2]));
            counted += 1;
        }
        let out = out.f32_mut();
        let before = if p.accumulate == 1 { [out[0], out[1]] } else { [0.0; 2] };
        out[0] = (f64::from(before[0]) + loss) as f32;
        out[1] = before[1] + counted as f32;
    }

    fn cases(&self) -> Vec<Case> {
        let case = |rows, accumulate| {
            let name = if accumulate == 1 { format!("{rows}_add") } else { format!("{rows}") };
            Case::new(name, Call::new(&Params { rows, accumulate }))
        };
        let bench = Params { rows: 2048, accumulate: 1 };
        vec![
            case(1, 0),
            case(7, 1),
            case(64, 0),
            case(257, 1),
            case(1021, 0),
            Case::bench("tokens_2048", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let targets = case_targets(rng, p.rows, 32000);
        let mut stats = uniform_vec(rng, 3 * p.rows as usize, -10.0, 10.0);
        for stats in stats.chunks_mut(3) {
            stats[1] = 1.0 + 50.0 * stats[1].abs();
            // No target is above the maximum, and no sum below the target's own share.
            stats[2] = stats[0] - (stats[2] + 10.0);
        }
        let out = match p.accumulate {
            1 => uniform_f32(rng, 2, 1.0, 9.0),
            _ => CaseBuffer::Output(2),
        };
        vec![CaseBuffer::U32(targets), CaseBuffer::F32(stats), out]
    }

    fn work(&self, call: &Call) -> Work {
        let rows = u64::from(call.params::<Params>().rows);
        Work { bytes: 4 * (4 * rows + 2), flops: 4 * rows }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-6 * call.params::<Params>().rows as f32,
            rel: 2e-6,
            why: "log within 3 units in the last place per row, f32 sum of one sign",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_op, floats, run, words};
    use super::*;

    #[test]
    fn shader_and_cases() {
        check_op(&CrossEntropyLoss);
    }

    #[test]
    fn counts_and_accumulates() {
        // Huge logits: max - target must be taken before log(sum) is added.
        let stats = words(&[1e4, 1.5, 1e4, f32::NAN, 0.0, 0.0, -1e4, 2.0, -1.0001e4]);
        let targets = vec![3, IGNORE, 4];
        let p = Params { rows: 3, accumulate: 1 };
        let out = run(dispatch(p, targets.clone(), stats.clone(), words(&[10.0, 5.0])));
        let want = 1.5_f64.ln() + 2.0_f64.ln() + 1.0;
        assert_close(&floats(&out[2]), &[10.0 + want, 7.0], 0.0, 1e-6);
        let p = Params { rows: 3, accumulate: 0 };
        let out = run(dispatch(p, targets, stats, words(&[f32::NAN; 2])));
        assert_close(&floats(&out[2]), &[want, 2.0], 0.0, 1e-6);
    }
}
