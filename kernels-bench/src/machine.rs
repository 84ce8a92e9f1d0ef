//! What a record was measured on, as text without names of people, hosts or folders.

use std::process::Command;

use edge_gpu::{DeviceInfo, DeviceKind};

/// Lines `key: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine(Vec<(String, String)>);

impl Machine {
    /// This machine, with this device.
    pub fn this(info: &DeviceInfo) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let entries = [
            ("adapter", info.name.clone()),
            ("kind", info.kind.name().into()),
            ("backend", info.backend.clone()),
            ("driver", format!("{} {}", info.driver, info.driver_info)),
            ("cpu", cpu()),
            ("threads", cores.to_string()),
            ("memory", memory()),
            ("os", os()),
            ("rustc", output("rustc", &["--version"])),
        ];
        Self(entries.map(|(key, value)| (key.to_string(), one_line(&value))).into())
    }

    /// The text of `machine.txt`.
    pub fn text(&self) -> String {
        self.0.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    /// Keys with their values.
    pub fn entries(&self) -> &[(String, String)] {
        &self.0
    }

    /// Reads [`Machine::text`].
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        Self(lines.map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// Lines `key: theirs there, ours here` of what is not the same.
    pub fn differences(&self, there: &Self) -> Vec<String> {
        let find = |machine: &Self, key: &str| {
            let found = machine.0.iter().find(|(known, _)| known == key);
            found.map_or("(unknown)".to_string(), |(_, value)| value.clone())
        };
        let mut keys: Vec<&String> = self.0.iter().map(|(key, _)| key).collect();
        for (key, _) in &there.0 {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.into_iter()
            .filter_map(|key| {
                let (ours, theirs) = (find(self, key), find(there, key));
                (ours != theirs).then(|| format!("{key}: {theirs} there, {ours} here"))
            })
            .collect()
    }

    /// Few characters that differ where the machines do.
    pub fn fingerprint(&self) -> String {
        // FNV-1a: the standard library's hashes may change between versions.
        let hash = self.text().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{:08x}", (hash ^ hash >> 32) as u32)
    }
}

/// The folder of a device's records. A driver that runs on the CPU is as fast as the CPU, which
/// is therefore part of its name.
pub fn slug(info: &DeviceInfo) -> String {
    let mut name = info.name.clone();
    if matches!(info.kind, DeviceKind::Software | DeviceKind::Host) {
        name = format!("{name} {}", cpu());
    }
    slug_of(&name)
}

/// Lower case, and one hyphen for anything that is not a letter or digit.
fn slug_of(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let slug = words.collect::<Vec<&str>>().join("-").to_lowercase();
    if slug.is_empty() { "unnamed".into() } else { slug }
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<&str>>().join(" ");
    if text.is_empty() { "(unknown)".into() } else { text }
}

/// What a program prints; empty where there is no such program.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    output
        .map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The value of a line `key ... : value` of a file of `/proc` or `/etc`.
fn field(path: &str, key: &str, separator: char) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(separator)?.1.trim().trim_matches('"').to_string())
}

fn cpu() -> String {
    if cfg!(target_os = "macos") {
        return output("sysctl", &["-n", "machdep.cpu.brand_string"]);
    }
    field("/proc/cpuinfo", "model name", ':')
        .or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
        .unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// In whole GiB: a kernel keeps a little for itself, and not always the same.
fn memory() -> String {
    let bytes = if cfg!(target_os = "macos") {
        output("sysctl", &["-n", "hw.memsize"]).parse::<u64>().ok()
    } else {
        let kib = field("/proc/meminfo", "MemTotal", ':');
        kib.and_then(|kib| kib.trim_end_matches(" kB").parse::<u64>().ok()).map(|kib| kib << 10)
    };
    bytes.map_or(String::new(), |bytes| format!("{:.0} GiB", bytes as f64 / f64::from(1 << 30)))
}

fn os() -> String {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    match os {
        "macos" => format!("macOS {} {arch}", output("sw_vers", &["-productVersion"])),
        "windows" => format!("{} {arch}", output("cmd", &["/C", "ver"])),
        _ => {
            let name = field("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_else(|| os.into());
            format!("{name} {arch}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(entries: &[(&str, &str)]) -> Machine {
        Machine(entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn text_is_read_back() {
        let one = machine(&[("adapter", "GPU: the best"), ("threads", "8")]);
        assert_eq!(Machine::parse(&one.text()), one);
    }

    #[test]
    fn differences_are_named() {
        let here = machine(&[("cpu", "new"), ("os", "same"), ("rustc", "1")]);
        let there = machine(&[("cpu", "old"), ("os", "same"), ("memory", "1 GiB")]);
        let lines = here.differences(&there);
        assert_eq!(
            lines,
            [
                "cpu: old there, new here",
                "rustc: (unknown) there, 1 here",
                "memory: 1 GiB there, (unknown) here"
            ]
        );
        assert!(here.differences(&here).is_empty());
        assert_ne!(here.fingerprint(), there.fingerprint());
    }

    #[test]
    fn slugs_are_folder_names() {
        assert_eq!(slug_of("AMD Radeon(TM) 780M / RADV"), "amd-radeon-tm-780m-radv");
        assert_eq!(slug_of("…"), "unnamed");
    }

    #[test]
    fn nothing_of_this_machine_is_empty() {
        let device = edge_gpu::Device::open("cpu", &edge_gpu::Options::default());
        let machine = Machine::this(device.expect("always there").info());
        assert!(machine.0.iter().all(|(_, value)| !value.is_empty()), "{machine:?}");
        let home = std::env::var("HOME").unwrap_or_default();
        assert!(home.is_empty() || home == "/" || !machine.text().contains(&home), "{machine:?}");
    }
}
