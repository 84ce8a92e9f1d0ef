//! `devices`: the adapters of this machine, and which one `auto` takes.

use anyhow::Result;
use edge_gpu::{Device, Options};
use serde_json::json;

use super::args::DevicesArgs;
use super::report::print_json;
use crate::session::mebibytes;

pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let auto = Device::open("auto", &Options::default())?;
    let listed = Device::list();
    let mut rows = Vec::new();
    for (index, summary) in listed.iter().enumerate() {
        let info = Device::open(&index.to_string(), &Options::default())?.info().clone();
        let chosen = info.name == auto.info().name && info.backend == auto.info().backend;
        eprintln!(
            "{index}: {} ({}, {}, driver {} {}){}",
            info.name,
            info.kind.name(),
            info.backend,
            info.driver,
            info.driver_info,
            if chosen { "  <- auto" } else { "" }
        );
        eprintln!(
            "   f16 {}, subgroups {} ({}..{}), timestamps {}, immediates {}, mappable {}, \
             binding {}, workgroup {} invocations / {} KiB",
            yes(info.f16),
            yes(info.subgroups),
            info.subgroup_min,
            info.subgroup_max,
            yes(info.timestamps),
            yes(info.immediates),
            yes(info.mappable),
            mebibytes(info.max_binding_bytes),
            info.max_invocations,
            info.max_workgroup_bytes / 1024
        );
        rows.push(json!({
            "index": index, "name": info.name, "kind": summary.kind.name(),
            "backend": info.backend, "driver": info.driver, "driver_info": info.driver_info,
            "auto": chosen, "f16": info.f16, "subgroups": info.subgroups,
            "subgroup_min": info.subgroup_min, "subgroup_max": info.subgroup_max,
            "timestamps": info.timestamps, "immediates": info.immediates,
            "mappable": info.mappable, "max_binding_bytes": info.max_binding_bytes,
            "max_buffer_bytes": info.max_buffer_bytes,
        }));
    }
    if args.json {
        print_json(&json!({ "devices": rows }))?;
    }
    Ok(())
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
