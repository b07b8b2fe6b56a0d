//! The commands of README.md and docs/ do what the pages say.
//!
//! Those that need no Linux guest run here, in a namespace with a bridge `br0`: `minivmm` is a script that starts the
//! real one and has the probe guest end at once, or, in the background, sleep. The others run as a scenario.

use images::error_chain;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tests::docs::{self, Page, Surroundings};
use tests::lan::sh;
use tests::namespace;
use tests::place::Place;
use tests::probe;

/// Seconds that a block may take.
const SECONDS: u32 = 60;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, Vec::new()).exit_code();
    }
    let target = probe::target_of(Path::new(env!("CARGO_TARGET_TMPDIR")));
    // Before the namespaces, where cargo may still need the network; inside, this finds everything up to date.
    let programs = probe::build(&target).and_then(|probe| Ok((probe, probe::build_minivmm(&target)?)));
    let pages = match docs::pages() {
        Ok(pages) => pages,
        Err(error) => {
            return libtest_mimic::run(&arguments, vec![failed("pages are marked", error_chain(&error))]).exit_code();
        }
    };
    let trials = match (programs, namespace::isolate()) {
        (Err(error), _) => vec![failed("programs are built", error_chain(&error))],
        (_, Err(error)) => skipped(&pages, &error_chain(&error)),
        (Ok((probe, minivmm)), Ok(())) => match Place::ask() {
            place @ Place::NoKvm { .. } => skipped(&pages, &place.to_string()),
            _ => trials(pages, probe, minivmm),
        },
    };
    // One at a time: the bridge is everybody's.
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..arguments }, trials).exit_code()
}

fn trials(pages: Vec<Page>, probe: PathBuf, minivmm: PathBuf) -> Vec<Trial> {
    let trial = |page: Page| {
        let (probe, minivmm) = (probe.clone(), minivmm.clone());
        Trial::test(name(&page), move || {
            let scratch = tempfile::tempdir()?;
            let surroundings = surroundings(scratch.path(), &probe, &minivmm)?;
            let ran = docs::run(&page, &surroundings);
            sh("ip link del br0");
            println!("{}: {} blocks ran", page.name, ran.map_err(Failed::from)?);
            Ok(())
        })
    };
    pages.into_iter().map(trial).collect()
}

/// Makes the surroundings of a page's blocks: a bridge, files with the names that the pages use, and minivmm with the
/// probe as guest.
fn surroundings(scratch: &Path, probe: &Path, minivmm: &Path) -> Result<Surroundings, std::io::Error> {
    let [folder, programs, data] = ["here", "programs", "data"].map(|name| scratch.join(name));
    let guest = data.join("minivmm/guest");
    for folder in [&folder, &programs, &guest] {
        fs::create_dir_all(folder)?;
    }
    for file in [guest.join("vmlinuz"), folder.join("vmlinuz")] {
        fs::copy(probe, file)?;
    }
    for file in [guest.join("initramfs"), folder.join("initrd.img")] {
        fs::write(file, "empty")?;
    }
    fs::File::create(folder.join("root.img"))?.set_len(16 << 20)?;
    let script = programs.join("minivmm");
    let text = format!(
        "#!/bin/sh\nmode=common; [ \"$(readlink /proc/self/fd/0)\" != /dev/null ] || mode=idle\n\
         case ${{1-}} in --help* | --version) ;; --*) set -- \"$@\" --cmdline probe=$mode --stop-timeout 0 ;; esac\n\
         exec {} \"$@\"\n",
        minivmm.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    sh("ip link add br0 type bridge && ip addr add 192.0.2.1/24 dev br0 && ip link set br0 up");
    Ok(Surroundings { place: docs::Place::Namespace, folder, programs, data, seconds: SECONDS })
}

fn name(page: &Page) -> String {
    format!("commands of {} do what it says", page.name)
}

fn skipped(pages: &[Page], reason: &str) -> Vec<Trial> {
    let trial = |page: &Page| {
        let reason = reason.to_owned();
        Trial::ignorable_test(name(page), move || Ok(Completion::ignored_with(reason)))
    };
    pages.iter().map(trial).collect()
}

fn failed(name: &str, reason: String) -> Trial {
    Trial::test(name, move || Err(Failed::from(reason)))
}
