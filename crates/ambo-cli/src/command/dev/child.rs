//! The command that `ambo dev` runs: it has our terminal, hears our signals, and does not outlive us.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitCode, ExitStatus, Stdio};

use anyhow::Result;

use super::{Asked, Stop};
use crate::failure::Failure;
use crate::output::Output;

/// Ends the command when we have been killed: the kernel closes the pipe from which this reads.
///
/// The command itself leaves its process id in a file, before it is what it is to be: were it we who told the id, a
/// command whose `ambo dev` is killed in the moment after the start would live for ever.
const WATCH: &str = r#"
trap '' HUP INT TERM
file=$(mktemp) || exit 1
trap 'rm -f "$file"' EXIT
echo "$file"
while read -r word; do
  case $word in
    ended) exit 0 ;;
  esac
done
for try in 1 2 3; do
  read -r pid <"$file" && break
  sleep 1
done
[ -n "$pid" ] || exit 0
kill -s TERM "$pid" || exit 0
for try in 1 2 3 4 5 6 7 8 9 10; do
  sleep 1
  kill -s 0 "$pid" || exit 0
done
kill -s KILL "$pid"
"#;

/// Becomes the command, once the watch can know which process it is.
const START: &str = r#"echo $$ >"$0" && exec "$@""#;

/// Runs the command with DATABASE_URL set and answers with its exit status.
pub(super) async fn run(command: &[String], url: &str, stop: &mut Stop, output: Output) -> Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitCode::SUCCESS) };
    if !is_found(program) {
        let message = format!("cannot run `{program}`: no such program");
        return Err(Failure::failed(message, "is it installed and spelt so?").into());
    }
    let (mut watch, file) = watch()?;
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", START, &file, program])
        .args(arguments)
        .env("DATABASE_URL", url)
        .spawn()?;
    let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
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
    // If the watch has died, only its service is lost.
    let _ = writeln!(watch, "ended");
    if let Some(signal) = status.signal() {
        output.say(&format!("`{program}` was ended by signal {signal}"));
    }
    Ok(exit_code(status))
}

/// Starts the watch; answers with the pipe to it, and the file in which the command leaves its process id.
fn watch() -> Result<(ChildStdin, String)> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", WATCH, "ambo-dev-watch"]).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let pipes = shell.spawn().ok().and_then(|mut shell| shell.stdin.take().zip(shell.stdout.take()));
    let mut file = String::new();
    let pipe = pipes.and_then(|(pipe, said)| BufReader::new(said).read_line(&mut file).ok().map(|_| pipe));
    match pipe {
        Some(pipe) if !file.is_empty() => Ok((pipe, file.trim_end().to_owned())),
        _ => Err(Failure::failed(
            "cannot run /bin/sh and mktemp",
            "`ambo dev` needs them to watch the command",
        )
        .into()),
    }
}

/// Whether the system would find the program.
fn is_found(program: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    program.contains('/') && Path::new(program).is_file()
        || !program.contains('/') && env::split_paths(&paths).any(|path| path.join(program).is_file())
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
