//! What an independent observer sees of simulated attacks, compared with the probe's records: all files, addresses and
//! programs of each acting process, in order.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use models::event::EventKind;

use crate::simulate::Recording;
use crate::turn;

/// Variants of seven threats, by tools and by the binary's copy. Tracing excludes those that trace themselves.
const SAMPLE: &[(&str, &str)] = &[
    ("credential-dumping", "cat-shadow"),
    ("credential-dumping", "openat2-shadow"),
    ("reverse-shell", "bash-dev-tcp"),
    ("reverse-shell", "static-ipv6"),
    ("lateral-movement", "sweep"),
    ("exfiltration", "curl-upload"),
    ("process-injection", "memory-file"),
    ("anti-forensics", "redirect"),
    ("dns-tunnelling", "static-connected"),
    ("cryptomining", "python-stratum"),
];

/// What a process asked for, in the words of both.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Open(String),
    Connect(String),
    Exec(String),
}

/// The text between the first quotes.
fn quoted(line: &str) -> Option<String> {
    let rest = line.split_once('"')?.1;
    Some(rest[..rest.find('"')?].to_owned())
}

/// `sin_port=htons(22), sin_addr=inet_addr("127.0.0.2")`, and the same of IPv6.
fn address(line: &str) -> Option<String> {
    let (_, after) = line.split_once("_port=htons(")?;
    let port = after.split_once(')')?.0;
    if let Some((_, ip)) = after.split_once("inet_addr(\"") {
        return Some(format!("{}:{port}", ip.split_once('"')?.0));
    }
    let (_, ip) = after.split_once("inet_pton(AF_INET6, \"")?;
    Some(format!("[{}]:{port}", ip.split_once('"')?.0))
}

/// What strace wrote: each line begins with the number of a thread; these programs have one.
fn observed(text: &str) -> BTreeMap<u32, Vec<Asked>> {
    let mut found: BTreeMap<u32, Vec<Asked>> = BTreeMap::new();
    let mut starting: BTreeMap<u32, String> = BTreeMap::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let (Ok(pid), rest) = (pid.parse::<u32>(), rest.trim_start()) else { continue };
        let list = found.entry(pid).or_default();
        if rest.starts_with("open") || rest.starts_with("creat(") {
            list.extend(quoted(rest).map(Asked::Open));
        } else if rest.starts_with("connect(") {
            list.extend(address(rest).map(Asked::Connect));
        } else if rest.starts_with("execve(") {
            // Only one that succeeds replaces the program.
            if rest.ends_with(" = 0") {
                list.extend(quoted(rest).map(Asked::Exec));
            } else if rest.contains("unfinished") {
                starting.extend(quoted(rest).map(|path| (pid, path)));
            }
        } else if rest.contains("execve resumed") && rest.ends_with(" = 0") {
            list.extend(starting.remove(&pid).map(Asked::Exec));
        }
    }
    found
}

#[test]
fn strace_sees_the_same_files_addresses_and_programs_of_each_acting_process() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut compared, mut wanted) = (0, 0);
    for (threat, variant) in SAMPLE {
        let trace = folder.path().join(variant);
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-s", "300", "-e", "signal=none"]);
        command.args(["-e", "trace=open,openat,openat2,creat,connect,execve", "-o"]).arg(&trace);
        command.args([env!("CARGO_BIN_EXE_behaveguard"), "simulate", threat, "--variant", variant, "--json"]);
        let recording = Recording::of(&mut command);
        let report = &recording.reports[0];
        let pid = report.pid.unwrap_or_else(|| panic!("{report:?}"));
        assert_eq!(report.outcome, agent::simulate::report::Outcome::Done, "{report:?}");
        let observed = observed(&fs::read_to_string(&trace).expect("strace writes it"));
        for pid in recording.family(pid) {
            let recorded: Vec<Asked> = recording
                .of_process(pid)
                .filter_map(|event| match &event.kind {
                    EventKind::Open { path, .. } => Some(Asked::Open(path.to_string())),
                    EventKind::Connect { addr, port } => {
                        Some(Asked::Connect(std::net::SocketAddr::new(*addr, *port).to_string()))
                    }
                    EventKind::Exec { path, .. } => Some(Asked::Exec(path.to_string())),
                    _ => None,
                })
                .collect();
            let seen = observed.get(&pid).cloned().unwrap_or_default();
            assert_eq!(recorded, seen, "{}: the probe and strace about process {pid}", report.name());
            compared += seen.len();
        }
        // The object of the attack itself is among what strace saw.
        let family = recording.family(pid);
        let seen: Vec<&Asked> =
            observed.iter().filter(|(pid, _)| family.contains(pid)).flat_map(|(_, all)| all).collect();
        for sign in &report.expected {
            let asked = match (sign["record"].as_str(), sign["path"].as_str(), sign["address"].as_str()) {
                (Some("open" | "tamper"), Some(path), _) => Asked::Open(path.to_owned()),
                (Some("exec"), Some(path), _) => Asked::Exec(path.to_owned()),
                (Some("connect" | "dns"), _, Some(address)) => Asked::Connect(address.to_owned()),
                (Some("inject"), ..) => Asked::Open(format!("/proc/{}/mem", sign["victim"])),
                _ => continue,
            };
            assert!(seen.contains(&&asked), "{}: strace does not show {asked:?}", report.name());
            wanted += 1;
        }
    }
    assert!(compared > 100 && wanted >= SAMPLE.len(), "{compared} compared, {wanted} promised");
}

/// What may be written besides paths with the simulation's mark: nowhere, a namespace's user map, a child's memory, and
/// the folders and names that exist only in a memory file system on `/var`.
fn is_harmless(line: &str) -> bool {
    let places =
        ["\"/dev/null\"", "\"/dev/tty\"", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups"];
    let memory = line.contains("/mem\"") || line.contains("</proc/") && line.contains("\"mem\"");
    let inner = line.contains("mkdir") && (line.contains("\"/var/log\"") || line.contains("\"/var/tmp\""))
        || line.contains("\"/var/log/0");
    line.contains("behaveguard-simulation-")
        || memory
        || inner
        || places.iter().any(|place| line.contains(place))
}

#[test]
fn strace_sees_no_write_outside_of_a_simulations_places_and_no_look_into_a_home() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-s", "300", "-e", "signal=none", "-o"]).arg(&trace);
    command.args(["-e", "trace=%file,connect,sendto,fchmod,ftruncate,fallocate"]);
    command.args([env!("CARGO_BIN_EXE_behaveguard"), "simulate", "--all", "--json"]);
    // Cargo lets programs look for libraries in its user's folder.
    command.env_remove("LD_LIBRARY_PATH");
    // Those that trace a process fail, for strace does so already.
    let output = command.output().expect("strace runs");
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() > 100);
    let text = fs::read_to_string(&trace).expect("strace writes it");
    let calls = [
        "unlink",
        "rename",
        "mkdir",
        "rmdir",
        "chmod",
        "fchmod",
        "chown",
        "fchown",
        "lchown",
        "link",
        "symlink",
        "mknod",
        "truncate",
        "ftruncate",
        "fallocate",
        "utime",
        "futimesat",
        "setxattr",
        "lsetxattr",
    ];
    let flags = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"];
    // A resumed call was shown when it began.
    let done = |line: &&str| !line.contains(" = -1 ") && !line.contains("resumed>");
    let mut seen = 0;
    for line in text.lines().filter(done) {
        let name = line.split('(').next().unwrap_or_default().rsplit(' ').next().unwrap_or_default();
        let opens =
            name.starts_with("open") && flags.iter().any(|flag| line.contains(flag)) || name == "creat";
        if opens || calls.iter().any(|call| name.starts_with(call)) {
            assert!(is_harmless(line), "{line}");
            seen += 1;
        }
    }
    assert!(seen > 200, "{seen} changes");
    for line in text.lines() {
        assert!(!["\"/root/", "\"/home/"].iter().any(|home| line.contains(home)), "{line}");
        if let Some(address) = address(line) {
            let address: std::net::SocketAddr = address.parse().expect("an address");
            assert!(address.ip().is_loopback(), "{line}");
        }
    }
}
