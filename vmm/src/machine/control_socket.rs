//! Where callers are answered: whoever runs `minivmm counters` or `minivmm link`.
//!
//! ```text
//! [waiting] --caller of our user, or root--> [reading] --a line--> [answering] --sent--> [waiting]
//!     ^                                          |                      |
//!     '------------- hung up, too long, or too late: forgotten ---------'
//! ```
//!
//! Served by the control loop, which it never makes wait: every call is made without blocking, there is one caller at a
//! time, with a deadline, and the next waits in the socket's queue.

use crate::client::NOT_ALLOWED;
use crate::name::LockedName;
use crate::request::{LONGEST, Reply, Request};
use net::runtime_dir::NameLock;
use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Uid, geteuid};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a caller may take for a request and its reply.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The control_socket of one VM, over reboots of its guest.
pub(crate) struct ControlSocket {
    lock: LockedName,
    /// The user that has started the VM.
    user: Uid,
    caller: Option<Caller>,
}

struct Caller {
    stream: UnixStream,
    deadline: Instant,
    state: State,
}

enum State {
    /// The request as far as it has come.
    Reading(Vec<u8>),
    /// The rest of the reply.
    Answering(Vec<u8>),
}

impl ControlSocket {
    /// A control_socket where callers of the name that `lock` holds are answered.
    pub(crate) fn new(lock: LockedName) -> Self {
        Self { lock, user: geteuid(), caller: None }
    }

    /// The lock of the VM's name.
    pub(crate) fn lock(&self) -> &NameLock {
        self.lock.lock()
    }

    /// The descriptor and events to wait for.
    pub(super) fn source(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.caller {
            None => (self.lock.listener().as_fd(), PollFlags::POLLIN),
            Some(Caller { stream, state: State::Reading(_), .. }) => (stream.as_fd(), PollFlags::POLLIN),
            Some(Caller { stream, state: State::Answering(_), .. }) => (stream.as_fd(), PollFlags::POLLOUT),
        }
    }

    /// When the caller is forgotten.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.caller.as_ref().map(|caller| caller.deadline)
    }

    /// Forgets a caller who has taken too long.
    pub(super) fn check_deadline(&mut self, now: Instant) {
        self.caller.take_if(|caller| caller.deadline <= now);
    }

    /// Goes on as far as possible. `answer` is called for a whole request.
    pub(super) fn serve(&mut self, answer: impl FnOnce(Request) -> Reply) {
        let result = match &mut self.caller {
            None => self.welcome(),
            Some(caller) => caller.go_on(answer),
        };
        match result {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Finished) => self.caller = None,
            Err(err) => {
                log::debug!("A caller is forgotten: {err}");
                self.caller = None;
            }
        }
    }

    fn welcome(&mut self) -> io::Result<Progress> {
        let (stream, _) = match self.lock.listener().accept() {
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
            accepted => accepted?,
        };
        stream.set_nonblocking(true)?;
        let user = Uid::from_raw(getsockopt(&stream, sockopt::PeerCredentials)?.uid());
        let may_ask = user.is_root() || user == self.user;
        let state = if may_ask { State::Reading(Vec::new()) } else { reply(&not_allowed()) };
        self.caller = Some(Caller { stream, deadline: Instant::now() + TIMEOUT, state });
        Ok(Progress::Waiting)
    }
}

/// How far a call has come.
enum Progress {
    Waiting,
    Finished,
}

impl Caller {
    fn go_on(&mut self, answer: impl FnOnce(Request) -> Reply) -> io::Result<Progress> {
        if let State::Reading(line) = &mut self.state {
            let Some(request) = read_line(&self.stream, line)? else { return Ok(Progress::Waiting) };
            let request = serde_json::from_slice(&request);
            self.state = reply(&request.map_or_else(|err| Reply::Refused(format!("Not a request: {err}")), answer));
        }
        let State::Answering(left) = &mut self.state else { return Ok(Progress::Waiting) };
        match (&self.stream).write(left) {
            Ok(sent) => drop(left.drain(..sent)),
            Err(err) if err.kind() == ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
        Ok(if left.is_empty() { Progress::Finished } else { Progress::Waiting })
    }
}

/// Reads what has come of a line into `line`. Returns it once it is whole.
fn read_line(mut stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = [0; LONGEST];
    let read = match stream.read(&mut bytes[..LONGEST - line.len()]) {
        Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(None),
        read => read?,
    };
    line.extend_from_slice(&bytes[..read]);
    if line.last() == Some(&b'\n') {
        return Ok(Some(std::mem::take(line)));
    }
    // A read of nothing is the end.
    if read == 0 || line.len() == LONGEST { Err(ErrorKind::InvalidData.into()) } else { Ok(None) }
}

fn reply(reply: &Reply) -> State {
    // Maps with text keys and numbers: nothing in a reply can fail.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    State::Answering(line)
}

fn not_allowed() -> Reply {
    Reply::Refused(NOT_ALLOWED.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;
    use crate::name::VmName;
    use net::runtime_dir::{self, VmSocket};
    use nix::poll::PollFd;
    use std::io::{BufRead, BufReader};
    use std::sync::atomic::{AtomicU32, Ordering};

    static COUNT: AtomicU32 = AtomicU32::new(0);

    fn control_socket() -> (ControlSocket, VmName) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name: VmName = format!("control_socket-{}-{number}", std::process::id()).parse().unwrap();
        (ControlSocket::new(name.lock().unwrap()), name)
    }

    fn call(name: &VmName) -> UnixStream {
        runtime_dir::connect(name.as_str(), VmSocket::Control, Duration::from_secs(5)).unwrap()
    }

    /// Serves until nothing has happened for 20 ms.
    fn serve(control_socket: &mut ControlSocket) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            let (fd, flags) = control_socket.source();
            if event::poll(&mut [PollFd::new(fd, flags)], Some(Duration::from_millis(20))).unwrap() == 0 {
                return requests;
            }
            control_socket.serve(|request| {
                requests.push(request);
                Reply::Done
            });
        }
    }

    fn heard(stream: &UnixStream) -> String {
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    }

    #[test]
    fn request_is_answered_however_it_is_cut() {
        let (mut control_socket, name) = control_socket();
        let mut caller = call(&name);

        for piece in ["\"coun", "ters\"", "\n"] {
            caller.write_all(piece.as_bytes()).unwrap();
            serve(&mut control_socket);
        }

        assert_eq!(heard(&caller), "\"done\"\n");
    }

    #[test]
    fn callers_are_served_one_after_the_other() {
        let (mut control_socket, name) = control_socket();
        let callers: Vec<_> = (0..3).map(|_| call(&name)).collect();
        callers.iter().for_each(|mut caller| caller.write_all(b"\"counters\"\n").unwrap());

        assert_eq!(serve(&mut control_socket), [Request::Counters, Request::Counters, Request::Counters]);

        assert!(callers.iter().all(|caller| heard(caller) == "\"done\"\n"));
    }

    #[test]
    fn text_that_is_no_request_is_refused() {
        for text in ["\n", "{}\n", "\"reboot\"\n", "{\"link\":{\"card\":\"eth0\",\"state\":\"up\"}}\n", "\u{fffd}\n"] {
            let (mut control_socket, name) = control_socket();
            let mut caller = call(&name);
            caller.write_all(text.as_bytes()).unwrap();

            assert_eq!(serve(&mut control_socket), []);

            assert!(heard(&caller).starts_with("{\"refused\":"), "{text}");
        }
    }

    #[test]
    fn caller_who_says_too_much_or_hangs_up_is_forgotten() {
        let (mut control_socket, name) = control_socket();
        let mut talker = call(&name);
        talker.write_all(&[b'x'; LONGEST]).unwrap();
        assert_eq!(serve(&mut control_socket), []);
        drop(call(&name));
        serve(&mut control_socket);
        assert!(control_socket.caller.is_none());
        assert_eq!(heard(&talker), "");
    }

    #[test]
    fn silent_caller_is_forgotten_after_a_second() {
        let (mut control_socket, name) = control_socket();
        let silent = call(&name);
        let mut next = call(&name);
        next.write_all(b"\"counters\"\n").unwrap();
        serve(&mut control_socket);
        let deadline = control_socket.deadline().unwrap();

        control_socket.check_deadline(deadline - Duration::from_millis(1));
        assert!(control_socket.caller.is_some());
        control_socket.check_deadline(deadline);
        serve(&mut control_socket);

        assert_eq!((heard(&silent), heard(&next)), (String::new(), "\"done\"\n".to_owned()));
    }

    #[test]
    fn reply_that_the_socket_cannot_hold_is_sent_piece_by_piece() {
        let (mut control_socket, name) = control_socket();
        let mut caller = call(&name);
        caller.write_all(b"\"counters\"\n").unwrap();
        let long = "x".repeat(3 << 20);
        let reader = std::thread::spawn(move || heard(&caller).len());

        while control_socket.caller.is_some() || !reader.is_finished() {
            let (fd, flags) = control_socket.source();
            if event::poll(&mut [PollFd::new(fd, flags)], Some(Duration::from_millis(20))).unwrap() != 0 {
                control_socket.serve(|_| Reply::Refused(long.clone()));
            }
        }

        assert!(reader.join().unwrap() > 3 << 20);
    }
}
