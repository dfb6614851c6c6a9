//! A small volume for the write-ahead log, in memory, that can be filled up.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

const SIZE_MIB: u64 = 192;

/// A mounted volume; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Volume(PathBuf);

impl Volume {
    /// Mounts one at a new directory within `parent`.
    pub(crate) fn mount(parent: &Path) -> Result<Volume> {
        let path = parent.join("wal");
        fs::create_dir_all(&path)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={SIZE_MIB}m,mode=0755"), "ambo-chaos"]).arg(&path);
        let mounted = mount.stderr(Stdio::null()).status().context("no program `mount`")?;
        if !mounted.success() {
            bail!("mounting is not permitted here");
        }
        let volume = Volume(path);
        fs::set_permissions(&volume.0, fs::Permissions::from_mode(0o755))?;
        Ok(volume)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        // It ends when there is no room, which is what is wanted.
        let mut fill = Command::new("dd");
        fill.args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", self.ballast().display()));
        let _ = fill.stderr(Stdio::null()).status();
    }

    pub(crate) fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: the server may need a moment to let go of it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
        let _ = fs::remove_dir(&self.0);
    }
}
