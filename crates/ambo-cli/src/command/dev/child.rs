//! The command that `ambo dev` runs: it has our terminal, hears our signals, and does not outlive us.

use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ChildStdin, Command, ExitCode, ExitStatus, Stdio};

use anyhow::Result;

use super::{Asked, Stop};
use crate::failure::Failure;
use crate::output::Output;

/// Ends the command when we have been killed: the kernel closes the pipe from which this reads its process id.
const WATCH: &str = r#"
trap '' HUP INT TERM
while read -r word; do
  case $word in
    ended) exit 0 ;;
    *) pid=$word ;;
  esac
done
[ -n "$pid" ] || exit 0
kill -s TERM "$pid" || exit 0
for try in 1 2 3 4 5 6 7 8 9 10; do
  sleep 1
  kill -s 0 "$pid" || exit 0
done
kill -s KILL "$pid"
"#;

/// Runs the command with DATABASE_URL set and answers with its exit status.
pub(super) async fn run(command: &[String], url: &str, stop: &mut Stop, output: Output) -> Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitCode::SUCCESS) };
    let mut watch = watch()?;
    let mut child =
        tokio::process::Command::new(program).args(arguments).env("DATABASE_URL", url).spawn().map_err(
            |error| {
                Failure::failed(format!("cannot run `{program}`: {error}"), "is it installed and spelt so?")
            },
        )?;
    let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
    // If the watch has died, only its service is lost.
    let _ = writeln!(watch, "{pid}");
    let mut interrupts = 0u32;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            // The first Ctrl-C the command had from the terminal; who repeats it means us too.
            asked = stop.asked() => {
                interrupts += u32::from(asked == Asked::Interrupt);
                if asked == Asked::Terminate || interrupts > 1 {
                    terminate(&pid);
                }
            }
        }
    };
    let _ = writeln!(watch, "ended");
    if let Some(signal) = status.signal() {
        output.say(&format!("`{program}` was ended by signal {signal}"));
    }
    Ok(exit_code(status))
}

fn watch() -> Result<ChildStdin> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", WATCH, "ambo-dev-watch"]).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let pipe = shell.spawn().ok().and_then(|mut shell| shell.stdin.take());
    pipe.ok_or_else(|| {
        Failure::failed("cannot run /bin/sh", "`ambo dev` needs it to watch the command").into()
    })
}

fn terminate(pid: &str) {
    let mut kill = Command::new("/bin/sh");
    // One that has just ended makes it fail; that is as well.
    let _ = kill.args(["-c", "kill -s TERM \"$1\"", "sh", pid]).stderr(Stdio::null()).status();
}

/// Its own status; 128 and the number of the signal that ended it, as shells say it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
