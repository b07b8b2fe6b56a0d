//! The demo itself, on a host that boots Linux guests.

use super::{SHELL, terminal};
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use crate::vm::Vm;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// How the prompt of the guest's shell ends.
const PROMPT: &str = ":~# ";

/// Boots a guest on a bridge, moves `amount_mib` MiB each way and leaves its shell to the user, if there is one.
///
/// Panics if anything does not come about.
pub fn show(stage: &Stage, amount_mib: u32, interactive: bool) {
    let lan = Lan::new();
    println!("Bridge {} has {} and a DHCP server", lan.bridge(), lan.address());
    let machine = stage.vm().name("demo").mem(&format!("{}M", 512 + amount_mib)).net(lan.net());
    println!("$ {}", machine.command_line());
    let start = Instant::now();
    let vm = machine.start();
    let ready = vm.wait_for_ready();
    println!(
        "Guest ready after {:.2} s: Linux {}, {} vCPU, {} MiB, address {}",
        start.elapsed().as_secs_f64(),
        ready["kernel"].as_str().unwrap_or("?"),
        ready["cpus"],
        ready["mem_kib"].as_u64().unwrap_or(0) >> 10,
        ready["cards"][0]["addresses"][0].as_str().unwrap_or("none")
    );
    vm.wait_for(PROMPT);
    move_data(stage, &lan, &vm, amount_mib);
    if interactive {
        println!("{SHELL}");
        hand_over(vm);
    } else {
        vm.type_in("poweroff\n");
        println!("Guest powered off, minivmm's exit code is {}", vm.wait_exit());
    }
}

fn move_data(stage: &Stage, lan: &Lan, vm: &Vm, amount_mib: u32) {
    let (sent, returned) = (stage.file("sent"), stage.file("returned"));
    sh(&format!("head -c {amount_mib}M /dev/urandom >{}", sent.display()));
    let sum = sha256(&sent);
    let listener =
        TcpListener::bind((lan.address(), 0)).unwrap_or_else(|error| panic!("No port to listen at: {error}"));
    let target = listener.local_addr().unwrap_or_else(|error| panic!("No port to listen at: {error}"));
    let (host, port) = (target.ip(), target.port());

    vm.type_in(&format!("nc {host} {port} </dev/null >/tmp/data; echo down=$?\n"));
    let down = timed(
        &listener,
        |mut guest| {
            let mut file = File::open(&sent)?;
            io::copy(&mut file, &mut guest)
        },
        || vm.value("down"),
    );
    vm.type_in(&format!("nc {host} {port} </tmp/data >/dev/null\n"));
    let up = timed(&listener, |mut guest| io::copy(&mut guest, &mut File::create(&returned)?), String::new);
    vm.type_in("echo sum=$(sha256sum </tmp/data)\n");
    let guest_sum = vm.value("sum");

    assert_eq!(guest_sum.split_whitespace().next(), Some(sum.as_str()), "SHA-256 in the guest");
    assert_eq!(sha256(&returned), sum, "SHA-256 of what came back");
    for (direction, took) in [("To the guest:  ", down), ("From the guest:", up)] {
        let seconds = took.as_secs_f64();
        println!("{direction} {amount_mib} MiB in {seconds:.2} s, {:.0} MiB/s", f64::from(amount_mib) / seconds);
    }
    println!("SHA-256 is the same on both sides: {sum}");
}

/// Times what is done with the guest's next connection, from its first moment to `after` having returned.
fn timed<T>(
    listener: &TcpListener,
    transfer: impl FnOnce(std::net::TcpStream) -> io::Result<u64>,
    after: impl FnOnce() -> T,
) -> Duration {
    let (guest, _) = listener.accept().unwrap_or_else(|error| panic!("The guest did not connect: {error}"));
    let start = Instant::now();
    transfer(guest).unwrap_or_else(|error| panic!("The transfer failed: {error}"));
    after();
    start.elapsed()
}

fn sha256(file: &Path) -> String {
    sh(&format!("sha256sum {}", file.display())).split_whitespace().next().unwrap_or_default().to_owned()
}

/// Connects the guest's console with this process's input and output until the guest powers off.
fn hand_over(vm: Vm) {
    let raw = terminal::Raw::set();
    // A fresh prompt.
    vm.type_in("\n");
    let code = vm.connect(io::stdin(), io::stdout());
    drop(raw);
    println!("minivmm's exit code is {code}");
}
