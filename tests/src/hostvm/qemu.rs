//! The QEMU that a host VM runs in: its command line, its files, its process.

use super::kernel::{Kernel, create};
use super::{Config, Error, agent, initramfs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How the host VM's CPU comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Emulated, with AMD-V: works everywhere.
    Tcg,
    /// On the outer machine's hardware KVM, as a sandbox.
    Kvm,
}

/// A host VM's parts before it is started.
pub struct Machine {
    arguments: Vec<String>,
    kernel_parameters: Vec<String>,
    folder: tempfile::TempDir,
}

impl Machine {
    /// Provides the kernel, builds the initramfs and composes the command line.
    ///
    /// # Errors
    /// Whatever is missing outside.
    pub fn prepare(config: &Config) -> Result<Self, Error> {
        let kernel = Kernel::provide()?;
        create(&config.results)?;
        let results = absolute(&config.results)?;
        let folder = tempfile::tempdir().map_err(|source| Error::File {
            action: "Writing to",
            path: std::env::temp_dir(),
            source,
        })?;
        let initrd = folder.path().join("initrd");
        initramfs::build(&kernel, &initrd)?;
        let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            .iter()
            .map(|&word| word.to_owned())
            .collect();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        let (accel, cpu) = match config.accel {
            // A big translation cache: a kernel in a kernel does not fit the default one. Without erms and fsrm the
            // kernel copies memory by words; with them, TCG does it byte by byte.
            Accel::Tcg => ("tcg,tb-size=512", "max,-erms,-fsrm"),
            Accel::Kvm => ("kvm", "host"),
        };
        option("-M", "q35".to_owned());
        option("-accel", accel.to_owned());
        option("-cpu", cpu.to_owned());
        option("-smp", "1".to_owned());
        option("-m", format!("{}M", config.mem_mib));
        option("-nic", "none".to_owned());
        option("-kernel", path_text(&kernel.image));
        option("-initrd", path_text(&initrd));
        option("-virtfs", share("outer", Path::new("/"), Some("readonly=on,multidevs=remap")));
        option("-virtfs", share("results", &results, None));
        let kernel_parameters = vec![
            "console=ttyS0".to_owned(),
            "panic=-1".to_owned(),
            "mitigations=off".to_owned(),
            format!("minivmm.results={}", results.display()),
            format!("minivmm.modules={}", kernel.modules.display()),
        ];
        Ok(Self { arguments, kernel_parameters, folder })
    }

    /// Where the console of a started machine is logged.
    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// Starts QEMU with `control` as its end of the control channel.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn start(&self, control: UnixStream) -> Result<Child, Error> {
        let mut command = self.command(&[]);
        command
            .args(["-serial".to_owned(), format!("file:{}", self.console().display())])
            // The channel goes in as standard input: a descriptor that no other child can inherit by accident.
            .args(["-chardev", "socket,id=control,fd=0", "-device", "virtio-serial-pci"])
            .args(["-device".to_owned(), format!("virtserialport,chardev=control,name={}", agent::PORT_NAME)])
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        spawn(&mut command)
    }

    /// Starts QEMU with the host VM's serial port, and a shell on it, at this process's terminal.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn start_shell(&self) -> Result<Child, Error> {
        let mut command = self.command(&["quiet", "minivmm.shell"]);
        command
            .args(["-chardev", "stdio,id=terminal,mux=on,signal=off", "-serial", "chardev:terminal"])
            .args(["-mon", "chardev=terminal"]);
        spawn(&mut command)
    }

    /// Hands over the folder with the machine's files; they go when it goes.
    pub fn into_folder(self) -> tempfile::TempDir {
        self.folder
    }

    fn command(&self, more_parameters: &[&str]) -> Command {
        // setpriv makes QEMU die with this process, however this process ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(&self.arguments);
        let mut parameters = self.kernel_parameters.join(" ");
        for parameter in more_parameters {
            parameters.push(' ');
            parameters.push_str(parameter);
        }
        command.args(["-append", &parameters]);
        command
    }
}

fn spawn(command: &mut Command) -> Result<Child, Error> {
    command.spawn().map_err(|source| Error::Start { program: "setpriv".to_owned(), source })
}

fn share(tag: &str, path: &Path, more: Option<&str>) -> String {
    let more = more.map(|more| format!(",{more}")).unwrap_or_default();
    // A comma in a value is written twice.
    let path = path_text(path).replace(',', ",,");
    format!("local,mount_tag={tag},path={path},security_model=none{more}")
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|source| Error::File { action: "Finding", path: path.to_path_buf(), source })
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
