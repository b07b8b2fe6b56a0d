//! A host VM that is kept while many commands run in it: a Unix socket in front of one [`HostVm`].
//!
//! Each connection carries one command: the client sends a `Run` frame and gets the command's frames back. The socket's
//! file goes with the server.

use super::wire::{Command, Frame, Message, READY_ID, Status};
use super::{Error, HostVm};
use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Serves commands at `socket` until a client asks for the shutdown or the host VM is gone.
///
/// # Errors
/// If the socket cannot be made, and whatever ends the host VM.
pub fn serve(vm: HostVm, socket: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "Listening at", path: socket.to_path_buf(), source };
    // A socket left behind by a server that was killed; one that is in use answers.
    if UnixStream::connect(socket).is_err() {
        let _missing = fs::remove_file(socket);
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let result = thread::scope(|scope| {
        loop {
            let (client, _) = listener.accept().map_err(failed)?;
            match first_frame(&client) {
                Ok(Message::Shutdown) => return Ok(()),
                Ok(Message::Run(command)) => {
                    let vm = &vm;
                    scope.spawn(move || relay(vm, client, command));
                }
                // A client that says nothing sensible is not worth an answer.
                Ok(_) | Err(_) => {}
            }
        }
    });
    let _missing = fs::remove_file(socket);
    result.and_then(|()| vm.shutdown())
}

/// Runs a command in the host VM kept at `socket`, handing over its output as it comes.
///
/// # Errors
/// [`Error::File`] if no server has the socket, [`Error::Channel`] if the server goes away meanwhile.
pub fn exec(
    socket: &Path,
    mut command: Command,
    timeout: Duration,
    sink: &mut dyn FnMut(Message),
) -> Result<Status, Error> {
    command.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let mut server = connect(socket)?;
    Frame { id: READY_ID, message: Message::Run(command) }.write(&mut server).map_err(Error::Channel)?;
    loop {
        match Frame::read(&mut server).map_err(Error::Channel)?.message {
            Message::Exit(status) => return Ok(status),
            other => sink(other),
        }
    }
}

/// Powers the host VM kept at `socket` off.
///
/// # Errors
/// [`Error::File`] if no server has the socket.
pub fn stop(socket: &Path) -> Result<(), Error> {
    let mut server = connect(socket)?;
    Frame { id: READY_ID, message: Message::Shutdown }.write(&mut server).map_err(Error::Channel)
}

fn connect(socket: &Path) -> Result<UnixStream, Error> {
    UnixStream::connect(socket).map_err(|source| Error::File {
        action: "Connecting to",
        path: socket.to_path_buf(),
        source,
    })
}

fn first_frame(mut client: &UnixStream) -> io::Result<Message> {
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(Frame::read(&mut client)?.message)
}

fn relay(vm: &HostVm, mut client: UnixStream, command: Command) {
    let timeout = Duration::from_millis(command.timeout_ms);
    // A client that went away does not stop its command; the timeout does.
    let result = vm.stream(command, timeout, &mut |message| {
        let _gone = Frame { id: READY_ID, message }.write(&mut client);
    });
    match result {
        Ok(status) => {
            let _gone = Frame { id: READY_ID, message: Message::Exit(status) }.write(&mut client);
        }
        Err(error) => eprintln!("{error}"),
    }
}
