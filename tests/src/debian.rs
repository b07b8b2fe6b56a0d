//! A root disk of Debian packages, with the kernel and the initrd that belong to it: what a user installs, not what is
//! made for tests. `build.sh` says what is in it.
//!
//! It takes a minute of processor time and the package archive to make, so it is kept, and made anew when `build.sh`
//! changes. Scenarios that need it run only when they are asked for by name.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Makes the files of [`Debian`] in a folder.
const BUILD: &str = include_str!("debian/build.sh");
/// The script that the files were made by.
const MADE_BY: &str = "made-by";
/// An attempt to log in may take this long; the time until the next.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// The same for a look at the port, which costs next to nothing.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const GREETING_PAUSE: Duration = Duration::from_millis(100);
/// The first bytes of an ssh server (RFC 4253, 4.2).
const GREETING: &[u8; 4] = b"SSH-";
/// The most that is read of a question to the seed's server.
const REQUEST_MAX_BYTES: u64 = 8 << 10;

/// The files of a Debian guest.
#[derive(Debug, Clone)]
pub struct Debian {
    folder: PathBuf,
}

/// Why there is no Debian guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be handled.
    #[error("Cannot {action} {path:?}")]
    File {
        /// A verb, such as "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The script cannot be run.
    #[error("Cannot run the script that makes the Debian guest")]
    Run(#[source] io::Error),
    /// The script has failed and said why.
    #[error("Cannot make the Debian guest: mmdebstrap or mkfs.ext4 failed")]
    Failed,
}

impl Debian {
    /// The guest in `folder`, which need not be there.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Makes the guest in `folder`, or finds it made.
    ///
    /// # Errors
    /// If a package cannot be had or the disk cannot be made.
    pub fn provide(folder: &Path) -> Result<Self, Error> {
        let made_by = folder.join(MADE_BY);
        if fs::read(&made_by).is_ok_and(|script| script == BUILD.as_bytes()) {
            return Ok(Self::at(folder));
        }
        eprintln!("Making a Debian root disk in {} (a minute or more)", folder.display());
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::File { action, path, source }
        };
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", folder)(error)),
            _ => {}
        }
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let status = Command::new("sh").args(["-c", BUILD, "build.sh"]).arg(folder).status().map_err(Error::Run)?;
        if !status.success() {
            return Err(Error::Failed);
        }
        // Last: a guest without this file is made anew.
        fs::write(&made_by, BUILD).map_err(failed("write", &made_by))?;
        Ok(Self::at(folder))
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initrd that initramfs-tools made for it.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// The root disk, which is not to be written to.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    /// A copy of the disk with its holes, to be written to.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn copy_disk(&self, to: &Path) -> Result<(), Error> {
        let failed = |source| Error::File { action: "write", path: to.to_path_buf(), source };
        let status = Command::new("cp").arg("--sparse=always").arg(self.disk()).arg(to).status().map_err(failed)?;
        if status.success() { Ok(()) } else { Err(failed(io::Error::other("cp failed"))) }
    }

    /// The public key of [`Ssh`], in a line.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn public_key(&self) -> Result<String, Error> {
        let path = self.folder.join("key.pub");
        let line = fs::read_to_string(&path).map_err(|source| Error::File { action: "read", path, source })?;
        Ok(line.trim().to_owned())
    }

    /// OpenSSH's client for `user` at a port of this host, with a private copy of the key in `folder`.
    ///
    /// # Errors
    /// If the key cannot be copied.
    pub fn ssh(&self, user: &str, port: u16, folder: &Path) -> Result<Ssh, Error> {
        let key = folder.join("key");
        let source = self.folder.join("key");
        // ssh ignores a key that others can read.
        let copied = Command::new("install").args(["-m", "600"]).arg(&source).arg(&key).status();
        match copied {
            Ok(status) if status.success() => {}
            Ok(_) => {
                return Err(Error::File { action: "copy", path: source, source: io::Error::other("install failed") });
            }
            Err(error) => return Err(Error::File { action: "copy", path: source, source: error }),
        }
        Ok(Ssh { key, user: user.to_owned(), port })
    }
}

/// OpenSSH's client, on its way to a guest by a forwarded port.
#[derive(Debug, Clone)]
pub struct Ssh {
    key: PathBuf,
    user: String,
    port: u16,
}

impl Ssh {
    /// Runs a command in the guest, once.
    ///
    /// # Errors
    /// If ssh cannot be run. That it fails is in the output.
    pub fn attempt(&self, command: &str) -> io::Result<Output> {
        Command::new("timeout")
            .arg(LOGIN_TIMEOUT.as_secs().to_string())
            .args(["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"])
            .arg("-i")
            .arg(&self.key)
            .args(["-p", &self.port.to_string(), "-l", &self.user, "127.0.0.1", command])
            .stdin(Stdio::null())
            .output()
    }

    /// Tries until the guest answers as `good` wants it, and returns what it said.
    ///
    /// # Errors
    /// If it does not within `patience`; with the last failure.
    pub fn wait(&self, command: &str, patience: Duration, good: impl Fn(&str) -> bool) -> io::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            if !self.greets() && Instant::now() < deadline {
                // A port that refuses does so at once.
                thread::sleep(GREETING_PAUSE);
                continue;
            }
            let output = self.attempt(command)?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && good(&said) {
                return Ok(said);
            }
            if Instant::now() > deadline {
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(io::Error::other(format!("the guest does not answer {command:?}: {said}{error}")));
            }
            // An account that is not there yet.
            thread::sleep(LOGIN_PAUSE);
        }
    }

    /// True if an ssh server answers at the port: a cheap look, where a client that fails costs a guest dear.
    fn greets(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let heard = TcpStream::connect_timeout(&address, GREETING_TIMEOUT).and_then(|mut stream| {
            stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
            let mut greeting = [0; GREETING.len()];
            stream.read_exact(&mut greeting)?;
            Ok(greeting)
        });
        heard.is_ok_and(|greeting| greeting == *GREETING)
    }
}

/// The files that cloud-init gets by HTTP from the URL of `ds=nocloud-net;s=URL`.
#[derive(Debug, Clone)]
pub struct Seed {
    /// `user-data`.
    pub user_data: String,
    /// `meta-data`.
    pub meta_data: String,
}

impl Seed {
    /// Answers whoever asks on `listener`, as long as this process runs.
    pub fn serve(self, listener: TcpListener) {
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // One that goes away asks again.
                let _gone = self.answer(client);
            }
        });
    }

    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(LOGIN_TIMEOUT))?;
        let mut lines = BufReader::new(Read::take(&client, REQUEST_MAX_BYTES)).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        // The rest of the question, to its empty line: it would have the connection reset otherwise.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (status, text) = match request.split_whitespace().nth(1) {
            Some("/user-data") => ("200 OK", self.user_data.as_str()),
            Some("/meta-data") => ("200 OK", self.meta_data.as_str()),
            Some("/vendor-data") => ("200 OK", ""),
            _ => ("404 Not Found", ""),
        };
        let length = text.len();
        write!(client, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")
    }
}
