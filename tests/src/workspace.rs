//! The project as a thing to build: where its binaries and its guests are.

use crate::debian::{self, Debian};
use crate::guest::{Guest, SERIES};
use crate::probe;
use images::guest::{self, GuestOptions};
use images::kernel::{Freshness, Series};
use images::{place, vmlinux};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Programs of this machine that the scenarios' guests have beside the usual ones and this very program, which is the
/// other end of [`crate::traffic`].
const PROGRAMS: [&str; 1] = ["ethtool"];

/// Debian's program that drives DPDK's poll-mode drivers, and the libraries of a guest that it loads by name: drivers,
/// and one that ends threads.
const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
const POLL_MODE_DRIVERS: [&str; 3] = ["librte_net_virtio.so.23", "librte_mempool_ring.so.23", "libgcc_s.so.1"];
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// The folder, among the guests, of the one that has them.
const DPDK: &str = "dpdk";

/// The init of guests.
const AGENT: &str = "minivmm-agent";
/// The folder, also there, of those without programs of the tests.
pub const PLAIN: &str = "plain";
/// The folder, also there, of the root disk of Debian packages.
const DEBIAN: &str = "debian";

/// The folder, among the guests, of the one that runs the kernel's own tests, and the modules that they take.
const SELFTESTS: &str = "selftests";
const SELFTESTS_MODULES: [&str; 3] = ["vrf", "macvlan", "bridge"];

/// The probe guest's name among the guests.
const PROBE: &str = "probe";

/// The name, also there, of the network's own cases, some of which take a stock kernel.
const HOST_CASES: &str = "host-cases";

/// Why the project's parts are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo could not be started.
    #[error("Program {program:?} could not be started")]
    Start {
        /// Its name.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// cargo failed; it has said why.
    #[error("`{command}` failed")]
    Failed {
        /// The command line.
        command: String,
    },
    /// cargo did not say where it has put the program.
    #[error("cargo does not say where the program of `{command}` is")]
    NoProgram {
        /// The command line.
        command: String,
    },
    /// The probe guest could not be built.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// Something could not be put among the guests.
    #[error("A program could not be copied to {to}")]
    Copy {
        /// Where to.
        to: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A guest could not be made.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The root disk of Debian packages could not be made.
    #[error(transparent)]
    Debian(#[from] debian::Error),
}

/// The repository's root.
pub fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The programs and guests of scenarios.
#[derive(Debug, Clone)]
pub struct Parts {
    /// `minivmm`.
    pub minivmm: PathBuf,
    /// The folder with a [`Guest`] for every series, and the probe guest.
    pub guests: PathBuf,
}

impl Parts {
    /// Provides the demo's parts: `minivmm` as it is soonest built, and the newest guest.
    ///
    /// # Errors
    /// If cargo fails.
    pub fn provide_demo() -> Result<Self, Error> {
        let guests = guests();
        // Of the words of `./run`; this very program must stay as it is.
        let demo = ["--workspace", "--bin", AGENT, "--bin", "minivmm", "--config", "tests/demo.toml"];
        let programs = build("debug", &demo)?;
        provide_guest(SERIES[0], &programs)?;
        Ok(Self { minivmm: programs.join("minivmm"), guests })
    }

    /// Builds what is released and provides a guest for each of `series`; what is up to date costs little.
    ///
    /// # Errors
    /// If cargo fails.
    pub fn provide(series: &[Series]) -> Result<Self, Error> {
        let (target, guests) = (target_folder(), guests());
        let minivmm = probe::build_minivmm(&target)?;
        let programs = build_agent()?;
        series.iter().try_for_each(|&series| provide_guest(series, &programs))?;
        if let Some(extras) = dpdk(&guests.join(DPDK))? {
            guest::provide(&options(SERIES[0], guests.join(DPDK), extras, &programs))?;
        }
        for &series in series {
            let guest = Guest::at(&guests, series);
            vmlinux::extract(&guest.bzimage, &guest.vmlinux)?;
        }
        for (name, program) in [(PROBE, probe::build(&target)?), (HOST_CASES, build_host_cases()?)] {
            let to = guests.join(name);
            std::fs::copy(program, &to).map_err(|source| Error::Copy { to, source })?;
        }
        Ok(Self { minivmm, guests })
    }

    /// The release, and guests of `series`: the usual ones, and those that users make.
    ///
    /// # Errors
    /// If cargo fails.
    pub fn provide_usual(series: &[Series]) -> Result<Self, Error> {
        let minivmm = probe::build_minivmm(&target_folder())?;
        let programs = build_agent()?;
        let guests = guests();
        for &series in series {
            provide_guest(series, &programs)?;
            guest::provide(&options(series, guests.join(PLAIN), Extras::default(), &programs))?;
        }
        Ok(Self { minivmm, guests })
    }

    /// The probe guest.
    pub fn probe(&self) -> PathBuf {
        self.guests.join(PROBE)
    }

    /// The guest that has DPDK, if this machine has it.
    pub fn dpdk_guest(&self) -> Option<Guest> {
        Some(Guest::at(&self.guests.join(DPDK), SERIES[0])).filter(|guest| guest.initramfs.is_file())
    }

    /// Makes the root disk of Debian packages, or finds it made.
    ///
    /// # Errors
    /// If a package cannot be had.
    pub fn provide_debian(&self) -> Result<Debian, Error> {
        Ok(Debian::provide(&self.guests.join(DEBIAN))?)
    }

    /// The root disk of Debian packages, once it has been provided.
    pub fn debian(&self) -> Debian {
        Debian::at(&self.guests.join(DEBIAN))
    }

    /// Makes the guest that runs the kernel's own tests, and its disk.
    ///
    /// # Errors
    /// If a program that goes there is missing, or the kernel's source cannot be fetched.
    pub fn provide_selftests(&self) -> Result<(), Error> {
        let out = self.guests.join(SELFTESTS);
        let extras = Extras { programs: Vec::new(), modules: SELFTESTS_MODULES.map(str::to_owned).to_vec() };
        guest::provide(&options(SERIES[0], out.clone(), extras, &build_agent()?))?;
        run(Command::new(root().join("tests/selftests/build")).arg(out))
    }

    /// The guest that [`Parts::provide_selftests`] makes.
    pub fn selftests_guest(&self) -> Guest {
        Guest::at(&self.guests.join(SELFTESTS), SERIES[0])
    }

    /// Its disk.
    pub fn selftests_disk(&self) -> PathBuf {
        self.guests.join(SELFTESTS).join("root.ext4")
    }

    /// The cases of `net/tests/host`.
    pub fn host_cases(&self) -> PathBuf {
        self.guests.join(HOST_CASES)
    }

    /// The parts as flags of this program's own words `scenario` and `show`.
    pub fn flags(&self) -> [String; 4] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        ["--minivmm".to_owned(), text(&self.minivmm), "--guests".to_owned(), text(&self.guests)]
    }
}

/// Programs and modules beside the usual ones for the guest with DPDK. `None` if this machine does not have it. The
/// drivers are copied to `out` on the way.
fn dpdk(out: &Path) -> Result<Option<Extras>, Error> {
    if !Path::new(TESTPMD).is_file() {
        return Ok(None);
    }
    let mut programs = vec![TESTPMD.to_owned()];
    for driver in POLL_MODE_DRIVERS {
        // Only programs are taken along, with their libraries; a driver is no program until it may be executed.
        let to = out.join(driver);
        let copied = std::fs::create_dir_all(out)
            .and_then(|()| std::fs::copy(Path::new(LIBRARIES).join(driver), &to))
            .and_then(|_| std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)));
        copied.map_err(|source| Error::Copy { to: to.clone(), source })?;
        programs.push(to.to_string_lossy().into_owned());
    }
    Ok(Some(Extras { programs, modules: vec!["uio_pci_generic".to_owned()] }))
}

/// Programs and modules that a guest has beside the usual ones.
#[derive(Debug, Default)]
struct Extras {
    programs: Vec<String>,
    modules: Vec<String>,
}

/// Provides the usual guest of a series, with the agent in `folder`.
fn provide_guest(series: Series, folder: &Path) -> Result<(), Error> {
    let programs = PROGRAMS.into_iter().map(str::to_owned).chain(own_program()).collect();
    guest::provide(&options(series, guests(), Extras { programs, ..Extras::default() }, folder))?;
    Ok(())
}

fn options(series: Series, out: PathBuf, Extras { programs, modules }: Extras, folder: &Path) -> GuestOptions {
    GuestOptions {
        series,
        freshness: Freshness::Cached,
        out,
        // One for all guests: kernels are large.
        cache: place::cache_dir(&guests()),
        agent: folder.join(AGENT),
        programs,
        modules,
    }
}

/// Builds minivmm and makes the guest of benchmarks. Returns minivmm and the guest.
///
/// # Errors
/// If cargo fails or the guest cannot be made.
pub fn provide_bench_guest() -> Result<(PathBuf, guest::Guest), Error> {
    let folder = target_folder();
    let minivmm = probe::build_minivmm(&folder)?;
    let programs = build_agent()?;
    // This program is in the guest as well, which sends datagrams back.
    let own = own_path().map(|path| path.to_string_lossy().into_owned());
    let programs_of_tests = std::iter::once("iperf3".to_owned()).chain(own).collect();
    let extras = Extras { programs: programs_of_tests, ..Extras::default() };
    let guest = guest::provide(&options(SERIES[0], folder.join("bench-guest"), extras, &programs))?;
    Ok((minivmm, guest))
}

/// Builds minivmm and makes the Debian guest, the same as for scenarios. Returns minivmm and the guest's folder.
///
/// # Errors
/// If cargo fails or a package cannot be had.
pub fn provide_bench_debian() -> Result<(PathBuf, PathBuf), Error> {
    let minivmm = probe::build_minivmm(&target_folder())?;
    let folder = target_folder().join("guests").join(DEBIAN);
    Debian::provide(&folder)?;
    Ok((minivmm, folder))
}

/// Builds the guests' init in the profile of this very program. Returns its folder.
fn build_agent() -> Result<PathBuf, Error> {
    if own_path().and_then(Path::parent).is_some_and(|folder| folder.ends_with("release")) {
        return build("release", &["--release", "--package", "images"]);
    }
    // The words of `./run`: a test has cargo choose the features of cargo's tests, which are built with the same
    // crates.
    build("debug", &["--workspace", "--bin", "tests", "--bin", AGENT, "--test", "arrows"])
}

/// Has cargo build `parts` of the workspace. Returns the folder of their profile.
fn build(profile: &str, parts: &[&str]) -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args(["build", "--quiet"]).args(parts).current_dir(root()))?;
    Ok(build_folder().map_or_else(|| root().join("target"), |folder| folder.join(profile)))
}

/// Builds `net/tests/host` as `cargo test` does. Returns the program.
///
/// # Errors
/// If cargo fails.
pub fn build_host_cases() -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Of the whole workspace, so that nothing is built anew with fewer features.
    let words = ["test", "--quiet", "--workspace", "--test", "host", "--no-run", "--message-format=json"];
    let command = format!("cargo {}", words.join(" "));
    let output = Command::new(cargo).args(words).current_dir(root()).stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|source| Error::Start { program: "cargo".to_owned(), source })?;
    if !output.status.success() {
        return Err(Error::Failed { command });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs.next_back().ok_or(Error::NoProgram { command })
}

fn own_program() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    program.to_str().map(str::to_owned)
}

/// The init of guests, which is built into the folder of this very program.
pub fn agent() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(AGENT)
}

/// Cargo's target folder.
pub fn target_folder() -> PathBuf {
    build_folder().and_then(Path::parent).map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// The folder of the guests.
fn guests() -> PathBuf {
    target_folder().join("guests")
}

/// The folder of the profiles.
fn build_folder() -> Option<&'static Path> {
    own_path()?.ancestors().nth(2)
}

/// This very program: `TARGET/TRIPLE/PROFILE/tests`.
fn own_path() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::current_exe().ok()).as_deref()
}

/// Runs a command whose output goes to ours.
fn run(command: &mut Command) -> Result<(), Error> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line = words.join(" ".as_ref()).to_string_lossy().into_owned();
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|source| Error::Start { program, source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: line }) }
}
