//! The directory of a development server, `.ambo`: where it is found, and what other commands read there.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tokio_postgres::Config;

use crate::failure::Failure;

/// The directory: PostgreSQL's `data`, `run` and `server.log`; `lock` and `url` while
/// it serves; `port`, kept for the next time.
#[derive(Debug, Clone)]
pub(crate) struct DevHome {
    path: PathBuf,
}

impl DevHome {
    /// The directory at a path, whether or not it is there.
    pub(crate) fn new(path: &Path) -> Self {
        DevHome { path: path.to_owned() }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The URL of the server that runs here.
    pub(crate) fn running(&self) -> Result<Option<String>, Failure> {
        // A killed `ambo dev` leaves its URL behind, and its server stops; the lock went with it.
        let is_taken = match File::open(self.path.join("lock")) {
            Ok(lock) => matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(error) if is_absent(&error) => false,
            Err(error) => return Err(unreadable(&self.path.join("lock"), &error)),
        };
        let url = if is_taken { self.read("url")? } else { None };
        if url.as_ref().is_some_and(|url| !url.starts_with("postgres://") || url.parse::<Config>().is_err()) {
            return Err(Failure::failed(
                format!("{} holds no URL of a database", self.path.join("url").display()),
                "stop the `ambo dev` that runs there and start it again: it writes the file anew",
            ));
        }
        Ok(url)
    }

    /// Takes the directory for a server of our own; `None` if another `ambo dev` has it.
    #[cfg(unix)]
    pub(crate) fn take(&self) -> Result<Option<Lock>, Failure> {
        let path = self.path.join("lock");
        let failed = |error: io::Error| {
            let message = format!("cannot use {}: {error}", path.display());
            Failure::failed(message, "name another place with --dir")
        };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                self.withdraw();
                Ok(Some(Lock { _file: file }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The port of the last time.
    pub(crate) fn last_port(&self) -> Option<u16> {
        self.read("port").ok().flatten()?.parse().ok()
    }

    /// Whether the process that the data names as its server is there.
    #[cfg(unix)]
    pub(crate) fn server_lives(&self) -> bool {
        let Ok(Some(server)) = self.read("data/postmaster.pid") else { return false };
        let pid = server.lines().next().unwrap_or_default();
        let mut look = std::process::Command::new("/bin/sh");
        look.args(["-c", "kill -s 0 \"$1\"", "sh", pid]).stderr(std::process::Stdio::null());
        look.status().is_ok_and(|status| status.success())
    }

    /// The major version of the PostgreSQL that made the data.
    pub(crate) fn data_version(&self) -> Option<u32> {
        self.read("data/PG_VERSION").ok().flatten()?.parse().ok()
    }

    /// Sees to it that the server can use the directory. PostgreSQL refuses to run as root, and the user that it runs
    /// as instead cannot enter what only root may enter: then the directory is a link to one that everybody can reach.
    #[cfg(unix)]
    pub(crate) fn prepare(&self, say: impl Fn(&str)) -> Result<(), Failure> {
        use std::fs::DirBuilder;
        use std::os::unix::fs::DirBuilderExt as _;
        if self.path.exists() {
            return Ok(());
        }
        let failed = |error: io::Error| {
            let message = format!("cannot make the directory {}: {error}", self.path.display());
            Failure::failed(message, "name another place with --dir")
        };
        let private =
            |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(failed);
        // A link whose directory was removed.
        if let Ok(place) = fs::read_link(&self.path) {
            return private(&place);
        }
        let path = std::path::absolute(&self.path).map_err(failed)?;
        let parent = path.parent().unwrap_or(&path);
        fs::create_dir_all(parent).map_err(failed)?;
        let parent = parent.canonicalize().map_err(failed)?;
        if !is_root() || parent.ancestors().all(is_open) {
            return private(&path);
        }
        let name: String = parent.to_string_lossy().replace('/', "-");
        let shared = Path::new("/var/lib/ambo");
        fs::create_dir_all(shared).map_err(failed)?;
        let place = shared.join(name.trim_start_matches('-'));
        private(&place)?;
        std::os::unix::fs::symlink(&place, &path).map_err(failed)?;
        say(&format!(
            "only root may enter {}, and PostgreSQL does not run as root: the data is in {}",
            parent.display(),
            place.display()
        ));
        Ok(())
    }

    /// Says to other commands where the server is.
    pub(crate) fn announce(&self, url: &str) -> io::Result<()> {
        // Nothing of it belongs into a repository.
        fs::write(self.path.join(".gitignore"), "*\n")?;
        if let Some(port) = port_of(url) {
            fs::write(self.path.join("port"), format!("{port}\n"))?;
        }
        // Whoever waits for the file finds it whole.
        let unfinished = self.path.join("url.unfinished");
        fs::write(&unfinished, format!("{url}\n"))?;
        fs::rename(unfinished, self.path.join("url"))
    }

    /// Takes the URL away: the server stops, or is about to start.
    pub(crate) fn withdraw(&self) {
        // There may be none.
        let _ = fs::remove_file(self.path.join("url"));
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }
}

/// Held while a server of ours is starting, running or stopping; the system releases it when we die.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(
        format!("cannot read {}: {error}", path.display()),
        "was `ambo dev` started by another user? set DATABASE_URL, or another place with --dir",
    )
}

/// Whether this process runs as root.
#[cfg(unix)]
fn is_root() -> bool {
    let said = std::process::Command::new("id").arg("-u").output();
    said.is_ok_and(|said| said.stdout.trim_ascii() == b"0")
}

/// Whether everybody may enter a directory.
#[cfg(unix)]
fn is_open(directory: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(directory).is_ok_and(|directory| directory.permissions().mode() & 0o001 != 0)
}

/// The port in a URL that `ambo dev` wrote: `postgres://postgres@127.0.0.1:PORT/ambo`.
fn port_of(url: &str) -> Option<&str> {
    url.rsplit_once(':')?.1.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_in_its_url() {
        assert_eq!(port_of("postgres://postgres@127.0.0.1:5433/ambo"), Some("5433"));
    }
}
