//! A transaction pooler before a server: `pgbouncer`, where it is installed.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use crate::Error;

/// A running `pgbouncer` in transaction mode; it ends with its owner, however that ends.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    shell: Child,
}

impl Pooler {
    /// Whether there is one to be had.
    #[must_use]
    pub fn is_installed() -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join("pgbouncer").is_file())
    }

    /// Starts one on a free port before the server of this machine on port `target`, to which it logs in as `postgres`. Its
    /// settings and its log are kept in `folder`, which every user must be able to enter. It answers a moment later.
    ///
    /// # Errors
    /// If the settings cannot be written, or there is no shell.
    pub fn start(folder: &Path, target: u16) -> Result<Pooler, Error> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| Error::io("no free port for a pooler", error))?
            .port();
        let settings = folder.join("pgbouncer.ini");
        fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={target} user=postgres\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 40\n\
                 server_login_retry = 0.2\nserver_connect_timeout = 3\nquery_wait_timeout = 10\n\
                 server_check_delay = 1\nignore_startup_parameters = extra_float_digits,options\n"
            ),
        )
        .map_err(|error| Error::io(format!("cannot write {}", settings.display()), error))?;
        // It refuses to be root. The shell lives for as long as its standard input is open.
        let script = "me=; [ \"$(id -u)\" != 0 ] || me='-u postgres'; export PATH=$PATH:/usr/sbin; \
                      pgbouncer -q $me \"$1\" 2>\"$2\" </dev/null & pid=$!; read -r _; kill -9 $pid";
        let shell = Command::new("/bin/sh")
            .args(["-c", script, "pooler"])
            .arg(&settings)
            .arg(folder.join("pgbouncer.log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Error::io("cannot start the shell that keeps a pooler", error))?;
        Ok(Pooler { port, shell })
    }

    /// The port of this machine on which it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
