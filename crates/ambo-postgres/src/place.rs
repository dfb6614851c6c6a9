//! The directories of a cluster: where they are, whose they are, and which of them go when the cluster goes.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, Permissions};
use std::hash::BuildHasher;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::{env, io};

use crate::Error;
use crate::account::Account;

/// Where temporary data lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In memory, where the system has `/dev/shm` with at least 1 GiB free; else in the temporary directory. For
    /// tests: fast, and of no use for measuring.
    #[default]
    Memory,
    /// On a real disk: below the build directory `target` that the current directory belongs to, else in `/var/tmp`.
    /// For benchmarks, where the cost of `fsync` must show.
    Disk,
    /// In a new directory within this one.
    In(PathBuf),
}

/// The longest path of a socket: 107 bytes on Linux, 103 on macOS, less the name `/.s.PGSQL.65535`.
const SOCKET_DIR_BYTES_MAX: usize = 103 - 15;

/// The directories of one cluster. `data` is for `initdb` to make.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) log: PathBuf,
    /// What goes with the cluster.
    pub(crate) remove: [Option<PathBuf>; 2],
}

impl Home {
    /// Makes directories that go with the cluster.
    pub(crate) fn temporary(place: &Place, account: &Account) -> Result<Self, Error> {
        let root = temporary_directory(&parents(place), account)?;
        Self::within(&root, Some(root.clone()), account)
    }

    /// Makes or takes up directories that stay.
    pub(crate) fn persistent(root: &Path, account: &Account) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("cannot make the directory {}", root.display()), error);
        fs::create_dir_all(root.parent().unwrap_or(root)).map_err(failed)?;
        private_directory(root, account).map_err(failed)?;
        account.own(root)?;
        let root = root.canonicalize().map_err(failed)?;
        if !account.can("-x", &root) {
            return Err(Error::new(format!(
                "{} cannot enter {}, and PostgreSQL refuses to run as root: keep the data where every user may go, \
                 such as /var/lib/ambo, or run this as an ordinary user",
                account.name(),
                root.display()
            )));
        }
        Self::within(&root, None, account)
    }

    fn within(root: &Path, remove: Option<PathBuf>, account: &Account) -> Result<Self, Error> {
        let mut run = root.join("run");
        let mut remove_too = None;
        if run.as_os_str().len() > SOCKET_DIR_BYTES_MAX {
            run = temporary_directory(&["/tmp".into()], account)?;
            remove_too = Some(run.clone());
        } else {
            private_directory(&run, account)
                .map_err(|error| Error::io(format!("cannot make the directory {}", run.display()), error))?;
            account.own(&run)?;
        }
        Ok(Self { data: root.join("data"), run, log: root.join("server.log"), remove: [remove, remove_too] })
    }

    /// The last lines of what the server said, to show when it does not start.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Makes the first directory that can be made in one of `parents` and that `account` can use.
fn temporary_directory(parents: &[PathBuf], account: &Account) -> Result<PathBuf, Error> {
    let mut last = None;
    for parent in parents {
        match directory_in(parent, account) {
            Ok(directory) => return Ok(directory),
            Err(error) => last = Some(Error::io(format!("cannot keep data in {}", parent.display()), error)),
        }
    }
    Err(last.unwrap_or_else(|| Error::new("no place for temporary data")))
}

fn directory_in(parent: &Path, account: &Account) -> io::Result<PathBuf> {
    fs::create_dir_all(parent)?;
    let mut parent = parent.canonicalize()?;
    if account.is_other() && !account.can("-w", &parent) {
        if !account.can("-x", &parent) {
            let why = format!("{} cannot go there", account.name());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        // The other user removes its directory when we are gone, so it must be able to write beside it, but not to
        // remove what is not its own: what the sticky bit of /tmp is for.
        parent.push("ambo-postgres");
        fs::create_dir_all(&parent)?;
        fs::set_permissions(&parent, Permissions::from_mode(0o1777))?;
    }
    let random = RandomState::new().hash_one(process::id());
    let directory = parent.join(format!("ambo-{}-{:08x}", process::id(), random as u32));
    DirBuilder::new().mode(0o700).create(&directory)?;
    account.own(&directory).map_err(io::Error::other)?;
    Ok(directory)
}

/// Makes a directory that only its owner enters, unless it is there.
fn private_directory(path: &Path, account: &Account) -> io::Result<()> {
    if !path.is_dir() {
        DirBuilder::new().mode(0o700).create(path)?;
        account.own(path).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Where a temporary directory may be made, best first.
fn parents(place: &Place) -> Vec<PathBuf> {
    match place {
        Place::In(directory) => vec![directory.clone()],
        Place::Memory => {
            let memory = PathBuf::from("/dev/shm");
            let roomy = memory.is_dir() && free_kib(&memory).is_some_and(|free| free >= 1 << 20);
            let mut parents = if roomy { vec![memory] } else { vec![] };
            parents.extend([env::temp_dir(), "/tmp".into()]);
            parents
        }
        Place::Disk => {
            let mut parents: Vec<PathBuf> = target_directory().into_iter().collect();
            // Not the temporary directory first: on many systems it is in memory.
            parents.extend(["/var/tmp".into(), env::temp_dir()]);
            parents
        }
    }
}

/// The build directory of the workspace that the current directory is in.
fn target_directory() -> Option<PathBuf> {
    if let Some(target) = env::var_os("CARGO_TARGET_DIR").filter(|target| !target.is_empty()) {
        return Some(target.into());
    }
    let here = env::current_dir().ok()?;
    here.ancestors().find(|above| above.join("Cargo.lock").is_file()).map(|root| root.join("target"))
}

/// Free space by `df`, whose output POSIX fixes; std has no call for it.
fn free_kib(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}
