//! Programs of this machine copied into a guest with the shared libraries that they need. The guest gets them under the
//! paths where the dynamic loader looks here, so both must be of one distribution; `ldd` tells which they are.

use crate::error::Error;
use crate::tree::{Entry, Tree};
use crate::{elf, tools};
use std::fs;
use std::path::Path;

/// Adds a program, by name or path, as `/usr/bin/NAME` with its libraries. It replaces a busybox applet of its name.
///
/// # Errors
/// [`Error::NoProgram`], [`Error::NoLibrary`], and what reading and `ldd` give.
pub fn add(tree: &mut Tree, program: &str) -> Result<(), Error> {
    let no_program = || Error::NoProgram { name: program.to_owned() };
    let path = tools::search(program).ok_or_else(no_program)?;
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).ok_or_else(no_program)?;
    let image = fs::read(&path).map_err(Error::file("read", &path))?;
    if image.starts_with(b"\x7fELF") && !elf::is_static(&image) {
        let report = tools::output(tools::tool("ldd")?.arg(&path))?;
        for library in libraries(&String::from_utf8_lossy(&report)) {
            let library = library
                .map_err(|missing| Error::NoLibrary { name: program.to_owned(), library: missing.to_owned() })?;
            let image = fs::read(library).map_err(Error::file("read", library))?;
            tree.put(library, Entry::Program(image));
        }
    }
    for dir in ["usr/bin", "usr/sbin", "bin", "sbin"] {
        let shadow = format!("{dir}/{name}");
        if tree.contains(&shadow) {
            tree.put(&shadow, Entry::Symlink(format!("/usr/bin/{name}")));
        }
    }
    tree.put(&format!("usr/bin/{name}"), Entry::Program(image));
    Ok(())
}

/// The library paths in an `ldd` report, or the name of one that was not found. The lines are `NAME => PATH (ADDRESS)`,
/// `PATH (ADDRESS)` for the loader, and `NAME (ADDRESS)` for the vDSO, which is no file.
fn libraries(report: &str) -> impl Iterator<Item = Result<&str, &str>> {
    report.lines().filter_map(|line| {
        let line = line.trim();
        let (name, rest) = line.split_once(" => ").unwrap_or((line, line));
        if rest.starts_with("not found") {
            return Some(Err(name));
        }
        rest.split(" (").next().filter(|path| path.starts_with('/')).map(Ok)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_gives_paths_and_leaves_the_vdso_out() {
        let report = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        let found: Vec<_> = libraries(report).collect();
        assert_eq!(found, [Ok("/lib/x/libc.so.6"), Ok("/lib64/ld.so.2")]);
    }

    #[test]
    fn missing_library_is_named() {
        let found: Vec<_> = libraries("\tlibz.so.1 => not found\n").collect();
        assert_eq!(found, [Err("libz.so.1")]);
    }

    #[test]
    fn unknown_program_is_refused() {
        let error = add(&mut Tree::default(), "no-such-program-here").unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"));
    }

    #[test]
    fn script_needs_no_libraries() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("hello");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).unwrap();
        let mut tree = Tree::default();
        tree.put("bin/hello", Entry::Symlink("/bin/busybox".into()));
        add(&mut tree, script.to_str().unwrap()).unwrap();
        let entries: Vec<_> = tree.iter().filter(|(path, _)| path.ends_with("hello")).collect();
        assert_eq!(entries[0], ("bin/hello", &Entry::Symlink("/usr/bin/hello".into())));
        assert_eq!(entries[1], ("usr/bin/hello", &Entry::Program(b"#!/bin/sh\n".to_vec())));
    }
}
