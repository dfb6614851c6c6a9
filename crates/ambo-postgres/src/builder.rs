//! What a cluster should be like, told before it starts.

use std::path::PathBuf;

use crate::{Binaries, Cluster, Error, Place, default_cache};

/// The wishes for a [`Cluster`]; made by [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) binaries: Option<Binaries>,
    pub(crate) home: Whereabouts,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) durable: Option<bool>,
    pub(crate) max_connections: u32,
    pub(crate) tcp: bool,
    pub(crate) port: Option<u16>,
    pub(crate) origin: Option<Origin>,
    pub(crate) wal_volume: Option<PathBuf>,
}

/// The server that a standby is made from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) socket_dir: PathBuf,
    pub(crate) port: u16,
}

/// Data that goes or data that stays.
#[derive(Clone, Debug)]
pub(crate) enum Whereabouts {
    Temporary(Place),
    Persistent(PathBuf),
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            binaries: None,
            home: Whereabouts::Temporary(Place::Memory),
            settings: Vec::new(),
            durable: None,
            max_connections: 100,
            tcp: true,
            port: None,
            origin: None,
            wal_volume: None,
        }
    }

    /// Uses these programs. Default: [`Binaries::find_or_fetch`] with [`default_cache`] and, for data that exists,
    /// of the version that made it.
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// Keeps the data below this directory and leaves it there: `data`, `run` (the socket) and `server.log`.
    ///
    /// What an earlier cluster left there is taken up again. The directory is private to its owner. Anybody on the
    /// machine can still log in through the loopback interface: for development, not for secrets.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.home = Whereabouts::Persistent(path.into());
        self
    }

    /// Keeps the data in a directory that goes with the cluster. The default, with [`Place::Memory`].
    #[must_use]
    pub fn temporary(mut self, place: Place) -> Self {
        self.home = Whereabouts::Temporary(place);
        self
    }

    /// Sets a configuration parameter of the server, in its own syntax, such as `shared_buffers` to `256MB`.
    ///
    /// Wins over what this crate sets itself; of two for one parameter, the later wins.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Whether committed data survives a power failure. Default: true for [`Builder::data_dir`], else false.
    ///
    /// False turns off `fsync` and `full_page_writes`. Even so, committed data survives [`Cluster::kill`]: the
    /// server still hands every commit to the operating system before it answers (`synchronous_commit` stays on).
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = Some(durable);
        self
    }

    /// The most connections at once. Default: 100.
    #[must_use]
    pub fn max_connections(mut self, count: u32) -> Self {
        self.max_connections = count;
        self
    }

    /// Whether the server listens on 127.0.0.1 beside its socket. Default: true, as not every driver can use sockets.
    #[must_use]
    pub fn tcp(mut self, tcp: bool) -> Self {
        self.tcp = tcp;
        self
    }

    /// Listens on this port. Default: a free one, chosen anew at [`Builder::start`] and kept over restarts.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A standby of this cluster, which runs: the data is a copy of its data, and what it writes is streamed. Ready for
    /// reading when it starts; [`Cluster::promote`] makes it a primary.
    ///
    /// The programs are those of the primary, and settings such as `max_connections` must be no smaller than its. What
    /// was set there by `alter system` comes along.
    #[must_use]
    pub fn standby_of(mut self, primary: &Cluster) -> Self {
        self.binaries = Some(primary.binaries().clone());
        self.origin = Some(Origin { socket_dir: primary.socket_dir().to_owned(), port: primary.port() });
        self
    }

    /// Keeps the write-ahead log in a new directory within this one, in segments of 1 MiB that are not used again: on
    /// a volume of its own, to see what happens when that is full. The directory stays; it is the caller's to remove.
    #[must_use]
    pub fn wal_volume(mut self, directory: impl Into<PathBuf>) -> Self {
        self.wal_volume = Some(directory.into());
        self
    }

    /// Makes the data directory if there is none, starts the server and waits until it answers.
    ///
    /// Takes about half a second for new data, less than a tenth for existing data.
    ///
    /// # Errors
    ///
    /// If there are no programs, the directory cannot be made or used, or the server does not start; the message
    /// then holds the end of its log.
    pub fn start(self) -> Result<Cluster, Error> {
        Cluster::create(self)
    }

    /// The programs to use; `existing` is the major version of the data that is there.
    pub(crate) fn choose_binaries(&self, existing: Option<u32>) -> Result<Binaries, Error> {
        let found = match (&self.binaries, existing) {
            (Some(given), _) => given.clone(),
            (None, None) => return Binaries::find_or_fetch(&default_cache(), |_| {}),
            (None, Some(major)) => match Binaries::find() {
                Ok(found) if found.major() == major => found,
                _ => return Binaries::for_version(major, &default_cache(), |_| {}),
            },
        };
        match existing {
            Some(major) if major != found.major() => Err(Error::new(format!(
                "the data was made by PostgreSQL {major}, and the programs in {} are of version {}: use those of \
                 version {major}, or remove the data",
                found.directory().display(),
                found.version()
            ))),
            _ => Ok(found),
        }
    }
}
