//! Who the server runs as. PostgreSQL refuses to run as root, so root hands its files and processes to another user.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{fs, io};

use crate::Error;

/// The user that the server and its guard run as.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// `None`: as the user we are.
    drop_to: Option<(u32, u32)>,
    name: String,
}

impl Account {
    /// Ourselves, or, as root, the owner of the existing directory `data`, else `postgres`, else `nobody`.
    ///
    /// The user must have an entry in the password file: `initdb` looks itself up.
    pub(crate) fn choose(data: Option<&Path>) -> Result<Self, Error> {
        if !is_root() {
            return Ok(Self { drop_to: None, name: "this user".into() });
        }
        let owner = data.and_then(|data| fs::metadata(data).ok()).map(|data| data.uid());
        let passwd = fs::read_to_string("/etc/passwd").map_err(|error| {
            Error::io("cannot read /etc/passwd to choose whom to run PostgreSQL as", error)
        })?;
        let entries: Vec<(&str, u32, u32)> = passwd.lines().filter_map(entry).collect();
        entries
            .iter()
            .find(|(_, uid, _)| *uid != 0 && Some(*uid) == owner)
            .or_else(|| entries.iter().find(|(name, ..)| *name == "postgres"))
            .or_else(|| entries.iter().find(|(name, ..)| *name == "nobody"))
            .map(|(name, uid, gid)| Self { drop_to: Some((*uid, *gid)), name: format!("user {name}") })
            .ok_or_else(|| {
                Error::new(
                    "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run \
                     it as: create one (`useradd --system postgres`), or run this as an ordinary user",
                )
            })
    }

    /// Lets `command` run as this user, in no supplementary group of ours.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.drop_to {
            // With a user id set and root as the caller, std also clears the supplementary groups.
            command.uid(uid).gid(gid);
        }
    }

    /// Gives `path` itself, not what is in it, to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        let Some((uid, gid)) = self.drop_to else { return Ok(()) };
        chown(path, Some(uid), Some(gid))
            .map_err(|error| Error::io(format!("cannot give {} to {}", path.display(), self.name), error))
    }

    /// True if this user is another than ours, so that shared directories need to be open to it.
    pub(crate) fn is_other(&self) -> bool {
        self.drop_to.is_some()
    }

    /// True if this user can do `test` (a flag of the shell's `test`, such as `-x`) to `path`.
    ///
    /// Asked of the kernel rather than computed from modes: every directory on the way counts.
    pub(crate) fn can(&self, test: &str, path: &Path) -> bool {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test \"$1\" \"$2\"", "sh", test]).arg(path).current_dir("/");
        self.apply(&mut command);
        command.stdin(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// For messages: "user postgres" or "this user".
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// True if this process runs as root.
pub(crate) fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    // std has no safe call for the effective user id.
    *ROOT.get_or_init(|| user_id().is_ok_and(|id| id == "0"))
}

fn user_id() -> io::Result<String> {
    let output = Command::new("id").arg("-u").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One line of the password file: name, user id, group id.
fn entry(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, uid, gid))
}

#[cfg(test)]
mod tests {
    use super::entry;

    #[test]
    fn a_line_of_the_password_file_gives_its_ids() {
        assert_eq!(entry("nobody:x:65534:65533::/:/usr/sbin/nologin"), Some(("nobody", 65534, 65533)));
        assert_eq!(entry("+"), None);
        assert_eq!(entry(""), None);
    }
}
