//! Building the shipped programs: static, and the same bytes wherever and by whomever they are built.
//!
//! What could make the bytes differ, and what is done about it:
//!
//! | cause | remedy |
//! |---|---|
//! | paths of the checkout, of Cargo's home and of the library's sources | `--remap-path-prefix`; `-ffile-prefix-map` for C |
//! | the name of the registry's directory in Cargo's home, which depends on the registry's address | each one is remapped |
//! | flags and profiles in the environment or in a user's Cargo configuration | variables are removed; `CARGO_ENCODED_RUSTFLAGS` outranks every configuration file |
//! | the C compiler, the C library, the linker | zig at a pinned version ([`crate::tools`]), for a baseline processor |
//! | debug information of C code | `-g0` |
//! | the clock | nothing reads it; `SOURCE_DATE_EPOCH` is the commit's time |
//! | parallel code generation | the profile: one codegen unit, fat LTO |
//! | features of dependencies that only another package asks for | one `cargo build` per program |
//! | the Rust compiler and library | recorded in the provenance ([`crate::toolchain`]) |

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::elf;
use crate::git::Sources;
use crate::progress::Progress;
use crate::target::Target;
use crate::toolchain::Toolchain;
use crate::tools::Tools;
use crate::workspace::{Workspace, cargo_home};

/// The profile of what ships.
const PROFILE: &str = "dist";
/// The linker runs in the workspace's root. A whole path would be another flag in every checkout, and so other binaries.
const NO_UNWINDING: &str = "-Clink-arg=-Wl,-T,xtask/no-unwinding.ld";
/// What the checkout is called in binaries.
const WORKSPACE_NAME: &str = "/self-hosted";
/// What Cargo's home is called in binaries.
const CARGO_HOME_NAME: &str = "/cargo";
/// Shorter paths than this are not searched for in binaries: `/src` is in every one of them.
const SHORTEST_TELLING_PATH: usize = 8;

/// Everything that two builds have in common.
pub(crate) struct Builder<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) toolchain: Toolchain,
    pub(crate) tools: Tools,
    pub(crate) sources: &'a Sources,
    /// Jobs that cargo may run at once; as many as there are processors if none.
    pub(crate) jobs: Option<usize>,
    pub(crate) offline: bool,
    /// A variable with a passphrase: it is not for the eyes of build scripts.
    pub(crate) secret: Option<OsString>,
}

impl Builder<'_> {
    /// Fetches the dependencies, so that the builds find them and their places are known.
    pub(crate) fn fetch(&self, targets: &[Target], progress: &Progress) -> Result<()> {
        let mut cargo = Command::new(&self.toolchain.compiler.cargo);
        cargo.args(["fetch", "--locked"]).current_dir(self.workspace.root());
        for target in targets {
            cargo.args(["--target", target.triple()]);
        }
        if self.offline {
            cargo.arg("--offline");
        }
        self.clean_environment(&mut cargo);
        progress.run(&mut cargo).context("cannot fetch the dependencies")?;
        Ok(())
    }

    /// Builds one program and proves that it can be shipped.
    pub(crate) fn build(
        &self,
        program: &str,
        target: Target,
        worker: Option<&Path>,
        progress: &Progress,
    ) -> Result<PathBuf> {
        let mut cargo = self.command(program, target)?;
        if let Some(worker) = worker {
            cargo.env("SPACELIFT_WORKER_BINARY", worker);
        }
        progress.run(&mut cargo)?;
        let binary = self.workspace.static_builds().join(target.triple()).join(PROFILE).join(program);
        elf::assert_static(&binary, target)?;
        self.assert_anonymous(&binary)?;
        Ok(binary)
    }

    fn command(&self, program: &str, target: Target) -> Result<Command> {
        let compiler = &self.toolchain.compiler;
        let mut cargo = Command::new(self.tools.cargo_zigbuild());
        cargo
            .current_dir(self.workspace.root())
            .args(["zigbuild", "--locked", "--profile", PROFILE, "--package", program, "--bin", program])
            .args(["--target", target.triple()])
            .arg("--target-dir")
            .arg(self.workspace.static_builds())
            .args(self.toolchain.build_std_flags());
        if self.offline {
            cargo.arg("--offline");
        }
        if let Some(jobs) = self.jobs {
            cargo.args(["--jobs", &jobs.to_string()]);
        }
        self.clean_environment(&mut cargo);
        if !self.toolchain.build_std_flags().is_empty() {
            // Building the library along is an unstable feature of a stable compiler.
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        let home = cargo_home()?;
        let remaps = self.remaps(&home)?;
        cargo
            .env("CARGO", &compiler.cargo)
            .env("RUSTC", &compiler.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", encoded(&rust_flags(&remaps)))
            .env(format!("CFLAGS_{}", target.triple().replace('-', "_")), c_flags(target, &remaps))
            // Without it the cc crate splits flags at every blank, and paths may contain one.
            .env("CC_SHELL_ESCAPED_FLAGS", "1")
            .env("CARGO_ZIGBUILD_ZIG_PATH", self.tools.zig())
            .env("CARGO_ZIGBUILD_CACHE_DIR", self.tools.cache().join("wrappers"))
            .env("ZIG_GLOBAL_CACHE_DIR", self.tools.cache().join("zig"))
            .env("ZIG_LOCAL_CACHE_DIR", self.tools.cache().join("zig"))
            .env("SOURCE_DATE_EPOCH", self.sources.date.to_string())
            .env("SPACELIFT_BUILD_COMMIT", &self.sources.commit);
        Ok(cargo)
    }

    /// What cargo knows about every package that some of the targets use, as JSON.
    pub(crate) fn metadata(&self, targets: &[Target], progress: &Progress) -> Result<Vec<u8>> {
        let mut cargo = self.offline_cargo("metadata");
        cargo.args(["--format-version", "1"]);
        for target in targets {
            cargo.args(["--filter-platform", target.triple()]);
        }
        progress.run(&mut cargo)
    }

    /// The packages that are part of a program or of its build scripts, with the features of this one program.
    pub(crate) fn dependencies(&self, program: &str, target: Target, progress: &Progress) -> Result<Vec<u8>> {
        let mut cargo = self.offline_cargo("tree");
        cargo.args(["--package", program, "--target", target.triple()]);
        cargo.args(["--edges", "normal,build", "--prefix", "none"]);
        progress.run(&mut cargo)
    }

    fn offline_cargo(&self, subcommand: &str) -> Command {
        let mut cargo = Command::new(&self.toolchain.compiler.cargo);
        cargo.current_dir(self.workspace.root()).args([subcommand, "--locked", "--offline"]);
        self.clean_environment(&mut cargo);
        cargo
    }

    fn clean_environment(&self, command: &mut Command) {
        for (name, _) in env::vars_os() {
            if changes_builds(&name) {
                command.env_remove(name);
            }
        }
        if let Some(secret) = &self.secret {
            command.env_remove(secret);
        }
    }

    /// Directories and what they are called in binaries; the compiler applies the last one that fits.
    fn remaps(&self, home: &Path) -> Result<Vec<(PathBuf, String)>> {
        let mut remaps =
            vec![(self.workspace.root().to_owned(), WORKSPACE_NAME.into()), (home.to_owned(), CARGO_HOME_NAME.into())];
        let registries = home.join("registry/src");
        if registries.exists() {
            let list = || -> Result<Vec<PathBuf>, std::io::Error> {
                fs::read_dir(&registries)?.map(|entry| entry.map(|entry| entry.path())).collect()
            };
            let mut registries = list().with_context(|| format!("cannot list {}", registries.display()))?;
            registries.sort();
            remaps.extend(registries.into_iter().map(|registry| (registry, format!("{CARGO_HOME_NAME}/registry"))));
        }
        remaps.push(self.toolchain.library_remap());
        Ok(remaps)
    }

    /// Fails if the binary tells where it was built: then another place would give other bytes.
    fn assert_anonymous(&self, binary: &Path) -> Result<()> {
        let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        for place in [self.workspace.root().to_owned(), cargo_home()?] {
            let place = place.as_os_str().as_encoded_bytes();
            let is_telling = place.len() >= SHORTEST_TELLING_PATH && !WORKSPACE_NAME.as_bytes().starts_with(place);
            if is_telling && let Some(at) = bytes.windows(place.len()).position(|window| window == place) {
                let rest = &bytes[at..bytes.len().min(at + 120)];
                anyhow::bail!(
                    "{} contains a path of this machine, so it would differ elsewhere: {}",
                    binary.display(),
                    String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default())
                );
            }
        }
        Ok(())
    }
}

fn rust_flags(remaps: &[(PathBuf, String)]) -> Vec<OsString> {
    // zig brings the C runtime's start files, not rustc; and without a static relocation model linkers make a dynamic PIE.
    let mut flags =
        vec![OsString::from("-Clink-self-contained=no"), "-Crelocation-model=static".into(), NO_UNWINDING.into()];
    for (from, to) in remaps {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    flags
}

/// The form that `CARGO_ENCODED_RUSTFLAGS` has: blanks are ordinary characters.
fn encoded(flags: &[OsString]) -> OsString {
    flags.join(OsStr::new("\x1f"))
}

fn c_flags(target: Target, remaps: &[(PathBuf, String)]) -> OsString {
    let mut flags = OsString::from("-g0");
    if target == Target::X86_64 {
        // zig's baseline processor switches 512-bit vectors off where clang leaves it open, and then functions that ask
        // for AVX-512 themselves, after a look at the processor, do not compile (libdeflate). No other code changes.
        flags.push(" -mevex512");
    }
    for (from, to) in remaps {
        flags.push(" '-ffile-prefix-map=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
        flags.push("'");
    }
    flags
}

/// Whether a variable of the user's environment could change what a build gives.
fn changes_builds(name: &OsStr) -> bool {
    const NAMES: [&str; 12] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_MANIFEST_DIR",
        "LD_LIBRARY_PATH",
        "LDFLAGS",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "SOURCE_DATE_EPOCH",
    ];
    const FAMILIES: [&str; 7] =
        ["CARGO_BUILD_", "CARGO_PKG_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_UNSTABLE_", "SPACELIFT_", "ZIG_"];
    // The cc crate reads these alone, with a target behind, and with HOST_ or TARGET_ before.
    const C_TOOLS: [&str; 10] =
        ["AR", "ARFLAGS", "CC", "CFLAGS", "CPPFLAGS", "CRATE_CC_NO_DEFAULTS", "CXX", "CXXFLAGS", "RANLIB", "CPATH"];
    let Some(name) = name.to_str() else { return false };
    let tool = name.strip_prefix("HOST_").or_else(|| name.strip_prefix("TARGET_")).unwrap_or(name);
    NAMES.contains(&name)
        || FAMILIES.iter().any(|family| name.starts_with(family))
        || name.starts_with("CARGO_ZIGBUILD_")
        || C_TOOLS.iter().any(|c| tool.strip_prefix(c).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{c_flags, changes_builds, encoded, rust_flags};
    use crate::target::Target;

    #[test]
    fn removes_what_changes_builds() {
        for name in [
            "RUSTFLAGS",
            "CARGO_PROFILE_DIST_OPT_LEVEL",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER",
            "CC",
            "CFLAGS_x86_64_unknown_linux_musl",
            "TARGET_CC",
            "HOST_CFLAGS",
            "SPACELIFT_WORKER_BINARY",
        ] {
            assert!(changes_builds(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn keeps_what_finds_programs_and_proxies() {
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_TOOLCHAIN", "HTTPS_PROXY", "CCACHE_DIR", "CARGO_NET_OFFLINE"]
        {
            assert!(!changes_builds(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn paths_may_contain_blanks() {
        let remaps = [("/my work/tree".into(), "/self-hosted".into())];
        let rust = encoded(&rust_flags(&remaps));
        assert!(rust.to_str().unwrap().ends_with("\x1f--remap-path-prefix=/my work/tree=/self-hosted"));
        assert!(
            c_flags(Target::X86_64, &remaps)
                .to_str()
                .unwrap()
                .ends_with(" '-ffile-prefix-map=/my work/tree=/self-hosted'")
        );
    }

    #[test]
    fn only_x86_64_has_vectors_to_switch_on() {
        assert!(c_flags(Target::X86_64, &[]).to_str().unwrap().contains("evex512"));
        assert_eq!(c_flags(Target::Aarch64, &[]), "-g0");
    }
}
