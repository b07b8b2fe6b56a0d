//! Bad input. It gets a sentence that names the thing, an exit code from the table, nothing left on the host.

use super::Scenario;
use crate::codes::{HOST, USAGE};
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "bad_input::kernels_and_initrds_are_refused_by_name", run: |stage| hold(stage, IMAGES) },
    Scenario { name: "bad_input::sizes_and_counts_are_refused_by_value", run: |stage| hold(stage, SIZES) },
    Scenario { name: "bad_input::networks_are_refused_by_key_and_name", run: |stage| hold(stage, NETWORKS) },
    Scenario { name: "bad_input::disks_are_refused_by_path", run: |stage| hold(stage, DISKS) },
    Scenario { name: "bad_input::a_host_that_lacks_something_is_told_what", run: |stage| hold(stage, HOSTS) },
    Scenario { name: "bad_input::what_another_machine_holds_is_refused", run: held },
];

/// A row of the table. In the texts, `$` words stand for: `$K` and `$I` a good kernel and initrd, `$D` the folder with
/// the bad files, `$B` a good bridge.
struct Case {
    /// Shell commands before minivmm, in namespaces of its own.
    before: &'static str,
    /// minivmm's flags.
    flags: &'static str,
    /// The text that the message contains, in any case of letters.
    says: &'static [&'static str],
    code: i32,
}

const fn case(flags: &'static str, says: &'static [&'static str], code: i32) -> Case {
    Case { before: "", flags, says, code }
}

const IMAGES: &[Case] = &[
    case("--kernel $D/missing", &["$D/missing"], USAGE),
    case("--kernel $D/empty", &["$D/empty"], USAGE),
    case("--kernel $D/folder", &["$D/folder"], USAGE),
    case("--kernel $D/truncated", &["$D/truncated"], USAGE),
    case("--kernel $D/text", &["$D/text", "kernel"], USAGE),
    case("--kernel $D/elf32", &["$D/elf32", "32"], USAGE),
    case("--kernel $D/elf_high", &["$D/elf_high"], USAGE),
    case("--kernel $D/compressed", &["$D/compressed", "compress"], USAGE),
    case("--kernel $K --initrd $D/missing", &["$D/missing"], USAGE),
    case("--kernel $K --initrd $D/huge --mem 128M", &["$D/huge", "memory"], USAGE),
];

const SIZES: &[Case] = &[
    case("--kernel $K --mem 1M", &["1M", "memory"], USAGE),
    case("--kernel $K --mem 0", &["0"], USAGE),
    case("--kernel $K --mem 100E", &["100E"], USAGE),
    case("--kernel $K --mem lots", &["lots"], USAGE),
    case("--kernel $K --cpus 0", &["0", "cpu"], USAGE),
    case("--kernel $K --cpus 100000", &["100000", "cpu"], USAGE),
    case("--kernel $K --cpus two", &["two"], USAGE),
    case("--kernel $K --stop-timeout soon", &["soon"], USAGE),
    case("--kernel $K --on-reboot explode", &["explode"], USAGE),
    case("--kernel $K --what", &["--what"], USAGE),
];

const NETWORKS: &[Case] = &[
    case("--kernel $K --net bridge=$B,colour=red", &["colour"], USAGE),
    case("--kernel $K --net bridge=$B,mtu=1500,mtu=1400", &["mtu"], USAGE),
    case("--kernel $K --net bridge=$B,tap=tap0", &["bridge", "tap"], USAGE),
    case("--kernel $K --net bridge=", &["bridge"], USAGE),
    case("--kernel $K --net mac=52:54:00:00:00:01", &["bridge"], USAGE),
    case("--kernel $K --net bridge=$B,mac=01:00:5e:00:00:01", &["01:00:5e:00:00:01", "multicast"], USAGE),
    case("--kernel $K --net bridge=$B,mac=00:00:00:00:00:00", &["00:00:00:00:00:00"], USAGE),
    case("--kernel $K --net bridge=$B,mac=52:54", &["52:54"], USAGE),
    case("--kernel $K --net bridge=$B,mac=$M", &["$M"], USAGE),
    case("--kernel $K --net bridge=$B,mtu=9", &["mtu", "9"], USAGE),
    case("--kernel $K --net bridge=$B,ring=100", &["ring=100", "power of two from 64 to 4096"], USAGE),
    case("--kernel $K --net bridge=$B,queues=65", &["queues=65", "1 to 64"], USAGE),
    case("--kernel $K --net bridge=$B,offload=lro", &["offload=lro", "csum:tso:ecn:ufo:uso"], USAGE),
    case("--kernel $K --net bridge=$B,offload=tso", &["tso needs csum"], USAGE),
    case("--kernel $K --net bridge=$B,vhost=maybe", &["\"maybe\" is not possible", "on or off"], USAGE),
    case("--kernel $K --net bridge=nosuchbridge", &["nosuchbridge"], USAGE),
    case("--kernel $K --net bridge=lo", &["lo", "bridge"], USAGE),
    case("--kernel $K --net tap=nosuchtap", &["nosuchtap"], USAGE),
    case("--kernel $K --net fd=999", &["999"], USAGE),
    case("--kernel $K --net tap=lo", &["lo", "tap"], USAGE),
];

const DISKS: &[Case] = &[
    case("--kernel $K --disk path=$D/missing", &["$D/missing"], USAGE),
    case("--kernel $K --disk path=$D/folder", &["$D/folder", "directory"], USAGE),
    case("--kernel $K --disk path=$D/uneven", &["$D/uneven", "512"], USAGE),
    case("--kernel $K --disk path=$D/empty", &["$D/empty"], USAGE),
    case("--kernel $K --disk path=$D/disk --disk path=$D/disk", &["$D/disk"], USAGE),
    case("--kernel $K --disk path=$D/disk,readonly=perhaps", &["\"perhaps\" is not possible", "on or off"], USAGE),
    case("--kernel $K --disk readonly=on", &["path"], USAGE),
    case("--kernel $K --disk path=$D/disk,colour=red", &["colour"], USAGE),
];

/// Each with a `/dev` of its own.
const HOSTS: &[Case] = &[
    Case {
        before: "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9;",
        flags: "--kernel $K",
        says: &["/dev/kvm"],
        code: HOST,
    },
    Case {
        before: "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 600 /dev/kvm c 10 232;
                 chmod 755 /dev; set -- setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\";",
        flags: "--kernel $K",
        says: &["/dev/kvm", "permission"],
        code: HOST,
    },
    Case {
        before: "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/kvm c 10 232;
                 mkdir -m 755 /dev/net; mknod -m 600 /dev/net/tun c 10 200; chmod 755 /dev;
                 set -- setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\";",
        flags: "--kernel $K --net bridge=$B",
        says: &["/dev/net/tun", "permission"],
        code: HOST,
    },
    Case {
        before: "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/kvm c 10 232;
                 mkdir -m 755 /dev/net; mknod -m 666 /dev/net/tun c 10 200;",
        flags: "--kernel $K --net bridge=$B,vhost=on",
        says: &["/dev/vhost-net", "modprobe vhost_net"],
        code: HOST,
    },
];

fn hold(stage: &Stage, cases: &[Case]) {
    let lan = Lan::new();
    let folder = stage.file("bad");
    bad_files(stage, &folder);
    let links = lan.links();
    let mac = sh(&format!("cat /sys/class/net/{}/address", lan.bridge()));
    let guest = stage.default_guest();
    let words = |text: &str| {
        text.replace("$K", &guest.bzimage.to_string_lossy())
            .replace("$I", &guest.initramfs.to_string_lossy())
            .replace("$D", &folder.to_string_lossy())
            .replace("$B", lan.bridge())
            .replace("$M", mac.trim())
    };
    let mut wrong = Vec::new();
    for case in cases {
        let (code, message) = run(stage, case.before, &words(case.flags));
        println!("{}\n    {code}  {}", words(case.flags), message.trim_end().replace('\n', "\n       "));
        for fault in faults(case, &words, code, &message) {
            wrong.push(format!("{}: {fault}", case.flags));
        }
        if lan.links() != links {
            wrong.push(format!("{}: the host's links have changed", case.flags));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn faults(case: &Case, words: &dyn Fn(&str) -> String, code: i32, message: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if code != case.code {
        faults.push(format!("exit code {code} and not {}", case.code));
    }
    let lower = message.to_lowercase();
    for said in case.says {
        if !lower.contains(&words(said).to_lowercase()) {
            faults.push(format!("the message does not say {said:?}"));
        }
    }
    for trace in ["panicked at", "backtrace", "os error 0"] {
        if lower.contains(trace) {
            faults.push(format!("the message has {trace:?}"));
        }
    }
    faults
}

/// Runs minivmm, which has to end by itself, and returns its exit code and its standard error.
fn run(stage: &Stage, before: &str, flags: &str) -> (i32, String) {
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"])
        .args([&format!("{before} exec \"$@\""), "case"])
        .arg(stage.minivmm())
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .expect("timeout starts");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn held(stage: &Stage) {
    sh("ip tuntap add held0 mode tap");
    let disk = stage.file("held.img");
    fs::write(&disk, [0; 4096]).expect("a disk");
    let first = stage.vm().name("twin").net("tap=held0").disk(format!("path={}", disk.display())).start();
    first.wait_for_ready();

    for (second, names) in [
        (stage.vm().name("twin"), "twin"),
        (stage.vm().net("tap=held0"), "held0"),
        (stage.vm().disk(format!("path={}", disk.display())), "held.img"),
        (stage.vm().disk(format!("path={},readonly=on", disk.display())), "held.img"),
    ] {
        let second = second.start();
        assert_eq!(second.wait_exit(), USAGE, "{}", second.log());
        println!("{}", second.log().trim_end());
        assert!(second.log().contains(names), "the message does not name {names}");
    }
}

fn bad_files(stage: &Stage, folder: &Path) {
    let kernel = stage.default_guest().bzimage;
    let kernel = kernel.display();
    fs::create_dir_all(folder.join("folder")).expect("a folder for bad files");
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("a bad file");
    put("empty", b"");
    put("text", "This is not a kernel, only a text about one.\n".repeat(100).as_bytes());
    put("uneven", &[0; 1000]);
    put("disk", &[0; 4096]);
    put("elf32", &elf_header(1, 0x10_0000));
    put("elf_high", &elf_header(2, 1 << 46));
    let folder = folder.display();
    sh(&format!("head -c 20000 {kernel} >{folder}/truncated; truncate -s 512M {folder}/huge"));
    sh(&format!("gzip -1 <{} >{folder}/compressed", stage.default_guest().vmlinux.display()));
}

/// An ELF executable with one segment of a page at `address`; `class` is 1 for 32 bits and 2 for 64.
fn elf_header(class: u8, address: u64) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    bytes.extend(address.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, address, address, 4096, 4096, 4096] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(4096, 0x90);
    bytes
}
