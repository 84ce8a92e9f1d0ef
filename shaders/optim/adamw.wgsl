//! One AdamW step with decoupled weight decay, as torch.optim.AdamW:
//! g = clip[1]·grad;  p -= lr·weight_decay·p;  m += (1-beta1)(g-m);  v = beta2·v + (1-beta2)·g²;
//! p -= lr/correction1 · m / (sqrt(v)/sqrt(correction2) + eps)
//!
//! param, m, v: [count] f32, updated in place · grad: [count] f32 · clip: [2] f32 (norm, scale)
//! Grid: WG elements a workgroup. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 256u;  //#spec power of two, 8..=256

struct Params {
    count: u32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    correction1: f32,
    correction2: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> param: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read> clip: array<f32>;

@compute @workgroup_size(WG)
fn adamw(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count {
        return;
    }
    let g = clip[1] * grad[i];
    let m_new = m[i] + (1.0 - params.beta1) * (g - m[i]);
    let v_new = params.beta2 * v[i] + (1.0 - params.beta2) * g * g;
    let denominator = sqrt(v_new) / sqrt(params.correction2) + params.eps;
    let decayed = param[i] - params.lr * params.weight_decay * param[i];
    m[i] = m_new;
    v[i] = v_new;
    param[i] = decayed - params.lr / params.correction1 * m_new / denominator;
}
