//! A transaction pooler in between: `pgbouncer`, where it is installed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result};

/// A running pooler; it ends with us, however we end.
#[derive(Debug)]
pub(crate) struct Pooler {
    pub(crate) port: u16,
    shell: Child,
}

/// Whether there is one to be had.
pub(crate) fn is_installed() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join("pgbouncer").is_file())
}

impl Pooler {
    /// Starts one before the server on port `target`; its settings and log are kept in `folder`.
    pub(crate) fn start(folder: &Path, target: u16) -> Result<Pooler> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
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
        )?;
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
            .context("no shell")?;
        Ok(Pooler { port, shell })
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
