//! Control groups of version 2: in which one a program was started, also when nobody can be asked any more.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use agent::probe::cgroup_root;
use models::event::EventKind;

use crate::{backend, events, load_only, turn};

/// The hierarchy; mounted for as long as this lives where it is not.
pub(crate) struct Hierarchy {
    pub(crate) root: PathBuf,
    ours: Option<PathBuf>,
}

impl Hierarchy {
    pub(crate) fn mounted() -> Self {
        let ours = cgroup_root().is_none().then(|| {
            let folder = std::env::temp_dir().join(format!("behaveguard-cgroup-{}", std::process::id()));
            fs::create_dir(&folder).expect("there is room");
            let mount = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&folder).status();
            assert!(mount.expect("mount starts").success());
            folder
        });
        Self { root: cgroup_root().expect("it is mounted"), ours }
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        if let Some(folder) = &self.ours {
            let _ = Command::new("umount").arg(folder).status();
            let _ = fs::remove_dir(folder);
        }
    }
}

#[test]
fn a_started_program_is_told_with_its_control_group() {
    let _turn = turn();
    let hierarchy = Hierarchy::mounted();
    let name = format!("behaveguard{}.slice/gw.service", std::process::id());
    let group = hierarchy.root.join(&name);
    fs::create_dir_all(&group).expect("root may");
    let script = format!("echo $$ > {}/cgroup.procs && exec /bin/true", group.display());
    for off in [
        &[][..],
        &["process_exec:tp_btf/sched_process_exec"],
        &["process_exec:tp_btf/sched_process_exec", "process_exec:raw_tp/sched_process_exec"],
    ] {
        let mut probe = load_only(&[], off);
        let mut child =
            Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::null()).spawn().expect("it starts");
        assert!(child.wait().expect("it ends").success());
        let groups: Vec<_> = events(&mut probe)
            .into_iter()
            .filter(|event| event.tgid == child.id())
            .filter_map(|event| match event.kind {
                EventKind::Exec { path, group, .. } => Some((path.to_string(), group.to_string())),
                _ => None,
            })
            .collect();
        let [(shell, before), (program, after)] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!((shell.as_str(), program.as_str()), ("/bin/sh", "/bin/true"));
        assert!(*before != name && *after == name, "{}: {groups:?}", backend(&probe, "process_exec"));
    }
    fs::remove_dir(&group).expect("nobody is in it");
    fs::remove_dir(group.parent().expect("the slice")).expect("it is empty");
}
