//! Makes sure that there is a Vulkan adapter for the tests, on Linux: looks for drivers without
//! building anything, installs Mesa's software driver where there is none and it may, and says
//! which environment makes the loader take it.
//!
//! macOS has Metal and Windows DX12, so nothing is needed there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cmd;

/// What to do by hand, one line a family of distributions.
const BY_HAND: &str = "  Debian, Ubuntu:  sudo apt-get install mesa-vulkan-drivers
  Fedora:          sudo dnf install mesa-vulkan-drivers vulkan-loader
  Arch:            sudo pacman -S vulkan-swrast vulkan-icd-loader
and then run `cargo xtask test` again";

/// Variables for the processes that open an adapter.
pub(crate) type Environment = Vec<(&'static str, PathBuf)>;

/// What is installed on this machine, as the choice needs it.
#[derive(Debug, Default)]
struct Machine {
    /// Driver manifests (`*_icd*.json`), those that the user names included.
    manifests: Vec<PathBuf>,
    /// The user names drivers through `VK_DRIVER_FILES` or `VK_ICD_FILENAMES`.
    named: bool,
    /// `libvulkan.so.1` is where the linker looks.
    loader: bool,
    /// `/dev/dri/renderD*` exists.
    render_node: bool,
    /// `/dev/nvidia0` exists.
    nvidia_node: bool,
    /// `/dev/dxg` (Windows' subsystem for Linux) exists.
    dxg_node: bool,
}

/// What to do with a [`Machine`].
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// The loader finds an adapter by itself.
    AsIs,
    /// No hardware that a driver here serves: name this software driver.
    Software(PathBuf),
    /// No driver or no loader.
    Missing,
}

impl Machine {
    fn look() -> Self {
        let variables = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
        let lists: Vec<_> = variables.iter().filter_map(std::env::var_os).collect();
        let named = lists.iter().any(|list| !list.is_empty());
        let manifests = if named {
            let files = lists.iter().flat_map(std::env::split_paths);
            files.filter(|file| file.is_file()).collect()
        } else {
            manifest_folders().iter().flat_map(|folder| json_files(folder)).collect()
        };
        let mut nodes = entries(Path::new("/dev/dri")).into_iter();
        Self {
            manifests,
            named,
            loader: has_loader(),
            render_node: nodes.any(|node| file_name(&node).starts_with("renderD")),
            nvidia_node: Path::new("/dev/nvidia0").exists(),
            dxg_node: Path::new("/dev/dxg").exists(),
        }
    }

    fn choice(&self) -> Choice {
        if !self.loader || self.manifests.is_empty() {
            return Choice::Missing;
        }
        if self.named {
            return Choice::AsIs;
        }
        let has = |part: &str| self.manifests.iter().any(|file| file_name(file).contains(part));
        let is_lavapipe = |file: &&PathBuf| file_name(file).starts_with("lvp_icd");
        // A distribution installs drivers of hardware that is not there; they cost start-up time
        // and warnings, and a machine without a GPU is better off without them.
        let hardware = self.render_node && self.manifests.iter().any(|file| !is_lavapipe(&file))
            || self.nvidia_node && has("nvidia")
            || self.dxg_node && has("dzn");
        if hardware {
            return Choice::AsIs;
        }
        match self.manifests.iter().find(is_lavapipe) {
            Some(file) => Choice::Software(file.clone()),
            None if has("swiftshader") => Choice::AsIs,
            None => Choice::Missing,
        }
    }
}

/// The environment in which tests find an adapter, after installing a driver if need be.
pub(crate) fn prepare() -> Result<Environment> {
    if !cfg!(target_os = "linux") {
        return Ok(Vec::new());
    }
    let mut machine = Machine::look();
    if machine.choice() == Choice::Missing {
        if machine.named {
            bail!(
                "VK_DRIVER_FILES or VK_ICD_FILENAMES is set, but names no driver manifest that \
                 exists (or libvulkan.so.1 is missing): correct or unset it"
            );
        }
        install()?;
        machine = Machine::look();
    }
    let mut environment = quiet_environment();
    match machine.choice() {
        Choice::AsIs => {}
        Choice::Software(file) => {
            eprintln!("no GPU found: the tests use Mesa's software driver {}", file.display());
            // The second name is for loaders older than 1.3.207.
            environment.push(("VK_DRIVER_FILES", file.clone()));
            environment.push(("VK_ICD_FILENAMES", file));
        }
        Choice::Missing => bail!(
            "mesa-vulkan-drivers is installed, but brought no Mesa software driver \
             (lvp_icd.*.json) or no libvulkan.so.1: install them by hand:\n{BY_HAND}"
        ),
    }
    Ok(environment)
}

/// The environment in which the loader takes SwiftShader, which Chromium brings along.
pub(crate) fn swiftshader() -> Result<Environment> {
    let folders = ["/usr/lib/chromium", "/usr/lib64/chromium-browser", "/opt/google/chrome"];
    let manifests = folders.iter().map(|folder| Path::new(folder).join("vk_swiftshader_icd.json"));
    let Some(file) = manifests.into_iter().find(|file| file.is_file()) else {
        bail!(
            "SwiftShader is not installed: it comes with Chromium (Debian: sudo apt-get install \
             chromium-common); looked in {}",
            folders.join(", ")
        );
    };
    let mut environment = quiet_environment();
    environment.push(("VK_DRIVER_FILES", file.clone()));
    environment.push(("VK_ICD_FILENAMES", file));
    Ok(environment)
}

/// What keeps Mesa from warning that it has no folder for run-time files.
pub(crate) fn quiet_environment() -> Environment {
    let needed = cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none();
    if needed { vec![("XDG_RUNTIME_DIR", std::env::temp_dir())] } else { Vec::new() }
}

/// Whether `apt-get` may be run here, and if so whether it takes `sudo`.
pub(crate) fn may_install() -> Option<bool> {
    cmd::find_program("apt-get")?;
    let root = cmd::output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0");
    let sudo = !root && cmd::succeeds(Command::new("sudo").args(["-n", "true"]));
    (root || sudo).then_some(sudo)
}

/// Installs Mesa's drivers, or fails with what to do by hand.
fn install() -> Result<()> {
    if cmd::find_program("apt-get").is_none() {
        bail!(
            "no Vulkan driver was found, and without apt-get this command cannot install one: \
             install it by hand:\n{BY_HAND}"
        );
    }
    let Some(sudo) = may_install() else {
        bail!(
            "no Vulkan driver was found, and this user may not install one: install it by \
             hand:\n{BY_HAND}"
        );
    };
    eprintln!("no Vulkan driver found: installing Mesa's");
    let packages = ["mesa-vulkan-drivers", "libvulkan1"];
    // Lists of packages that cannot be refreshed may still do, so only the install decides.
    let updated = cmd::run(apt_get(sudo).arg("update"));
    let installed =
        cmd::run(apt_get(sudo).args(["install", "-y", "--no-install-recommends"]).args(packages));
    match installed.and(updated) {
        Ok(()) => Ok(()),
        Err(_) if Machine::look().choice() != Choice::Missing => Ok(()),
        Err(error) => bail!("{error}; install a Vulkan driver by hand:\n{BY_HAND}"),
    }
}

/// `apt-get` without questions.
pub(crate) fn apt_get(sudo: bool) -> Command {
    let mut command = Command::new(if sudo { "sudo" } else { "env" });
    if sudo {
        command.args(["-n", "env"]);
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    command
}

/// Folders in which the Vulkan loader looks for driver manifests.
fn manifest_folders() -> Vec<PathBuf> {
    let mut bases: Vec<PathBuf> = ["/etc", "/usr/local/etc", "/usr/local/share", "/usr/share"]
        .iter()
        .map(PathBuf::from)
        .collect();
    bases.push(PathBuf::from("/run/opengl-driver/share"));
    for variable in ["XDG_CONFIG_DIRS", "XDG_DATA_DIRS", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        if let Some(list) = std::env::var_os(variable) {
            bases.extend(std::env::split_paths(&list).filter(|base| base.is_absolute()));
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        bases.push(Path::new(&home).join(".local/share"));
    }
    let mut folders: Vec<PathBuf> =
        bases.iter().map(|base| base.join("vulkan").join("icd.d")).collect();
    folders.sort();
    folders.dedup();
    folders
}

/// Whether `libvulkan.so.1` is in a folder of the dynamic linker.
fn has_loader() -> bool {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths).collect();
    for base in ["/usr/lib", "/lib", "/usr/lib64", "/usr/local/lib", "/run/opengl-driver/lib"] {
        folders.push(PathBuf::from(base));
        // Debian's multiarch folders: /usr/lib/x86_64-linux-gnu and its like.
        let below = entries(Path::new(base)).into_iter();
        folders.extend(below.filter(|path| file_name(path).contains("-linux-gnu")));
    }
    folders.iter().any(|folder| folder.join("libvulkan.so.1").exists())
        || ["ldconfig", "/sbin/ldconfig"].iter().any(|program| {
            cmd::output(Command::new(program).arg("-p"))
                .is_some_and(|list| list.contains("libvulkan.so.1"))
        })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder).into_iter().flatten();
    found.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn json_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = entries(folder);
    files.retain(|file| file.extension().is_some_and(|ext| ext == "json"));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[&str]) -> Machine {
        let manifests = files.iter().map(|file| Path::new("/icd.d").join(file)).collect();
        Machine { manifests, loader: true, ..Machine::default() }
    }

    #[test]
    fn without_a_gpu_the_software_driver_is_named() {
        let found = machine(&["intel_icd.x86_64.json", "lvp_icd.x86_64.json"]);
        assert_eq!(found.choice(), Choice::Software("/icd.d/lvp_icd.x86_64.json".into()));
        // A GPU whose own driver is not installed changes nothing.
        assert!(matches!(Machine { nvidia_node: true, ..found }.choice(), Choice::Software(_)));
    }

    #[test]
    fn a_gpu_with_a_driver_is_left_alone() {
        let mesa = machine(&["radeon_icd.x86_64.json", "lvp_icd.x86_64.json"]);
        assert_eq!(Machine { render_node: true, ..mesa }.choice(), Choice::AsIs);
        let nvidia = machine(&["nvidia_icd.json"]);
        assert_eq!(Machine { nvidia_node: true, ..nvidia }.choice(), Choice::AsIs);
    }

    #[test]
    fn what_the_user_names_is_taken() {
        let named = Machine { named: true, ..machine(&["any.json"]) };
        assert_eq!(named.choice(), Choice::AsIs);
    }

    #[test]
    fn no_driver_or_no_loader_is_missing() {
        assert_eq!(machine(&[]).choice(), Choice::Missing);
        assert_eq!(machine(&["intel_icd.x86_64.json"]).choice(), Choice::Missing);
        let without = Machine { loader: false, ..machine(&["lvp_icd.x86_64.json"]) };
        assert_eq!(without.choice(), Choice::Missing);
    }
}
