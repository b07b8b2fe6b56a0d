//! The guest's job: a script, or a shell on the console. Both end with the machine.

use crate::cmdline::ExitReport;
use crate::console::{self, machine_line, say};
use crate::power::Stop;
use crate::spawn::{applet, start};
use crate::supervisor::{Event, Supervisor};
use nix::unistd::Pid;
use std::fs::{self, OpenOptions};
use std::io;
use std::process::{Command, Stdio};

/// Where a script from the command line is put, on tmpfs.
const SCRIPT: &str = "/run/minivmm.run";
/// The code reported for a script that could not be started, as shells have it.
const CANNOT_RUN: i32 = 126;

/// Runs the script with its output on the console, which the kernel leaves to it but for emergencies, and reports its
/// exit code.
pub(crate) fn run_script(script: &[u8], report: ExitReport, supervisor: &mut Supervisor) -> Stop {
    // A script may turn it up again; the kernel's log has everything anyway.
    console::hold_kernel_back();
    let started = fs::write(SCRIPT, script)
        .and_then(|()| start(applet(["sh", SCRIPT]).current_dir("/root").stdin(Stdio::null())));
    let code = match started {
        Ok(pid) => match wait_for(pid, supervisor) {
            Ok(code) => code,
            Err(stop) => return stop,
        },
        Err(error) => {
            say!("Cannot run the script of the command line: {error}");
            CANNOT_RUN
        }
    };
    machine_line(format_args!("minivmm-exit {code}"));
    match (report, u8::try_from(code)) {
        (ExitReport::Port, Ok(code)) => Stop::Exit(code),
        _ => Stop::PowerOff,
    }
}

/// Runs a shell with job control on the console's terminal. Without a terminal there is only the power button to wait
/// for.
pub(crate) fn run_shell(supervisor: &mut Supervisor) -> Stop {
    match shell().and_then(|mut command| start(&mut command)) {
        Ok(pid) => wait_for(pid, supervisor).map_or_else(|stop| stop, |_| Stop::PowerOff),
        Err(error) => {
            say!("Cannot run a shell on the console: {error}");
            wait_for_stop(supervisor)
        }
    }
}

fn shell() -> io::Result<Command> {
    let path = console::terminal().ok_or_else(|| io::Error::other("the kernel has no console"))?;
    let terminal = OpenOptions::new().read(true).write(true).open(path)?;
    // `setsid -c` makes the standard input the controlling terminal of the new session.
    let mut command = applet(["-c", "sh", "-l"]);
    command.current_dir("/root");
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    Ok(command)
}

/// The exit code of a child, unless the machine shall stop before it ends.
fn wait_for(wanted: Pid, supervisor: &mut Supervisor) -> Result<i32, Stop> {
    loop {
        match supervisor.next(None) {
            Event::Ended { pid, code } if pid == wanted => return Ok(code),
            Event::Stop(stop) => return Err(stop),
            Event::Ended { .. } | Event::Deadline => {}
        }
    }
}

fn wait_for_stop(supervisor: &mut Supervisor) -> Stop {
    loop {
        if let Event::Stop(stop) = supervisor.next(None) {
            return stop;
        }
    }
}
