//! LOLBin abuse: tools that every system has do the intruder's work.

use super::{CURL, PERL, PYTHON, SH, started};
use crate::simulate::listener::Talk;
use crate::simulate::sandbox::Problem;
use crate::simulate::stage::Stage;
use crate::simulate::table::{Act, Log, Need, Proof, Sign, Threat, Variant, tool};

pub(crate) const THREAT: Threat = Threat {
    name: "lolbin-abuse",
    techniques: &["T1218", "T1105", "T1140", "T1059", "T1053", "T1543", "T1222", "T1036"],
    variants: VARIANTS,
};

macro_rules! lolbin {
    ($name:literal, $techniques:expr, $summary:literal, $needs:expr, $prepare:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: "process_exec",
            needs: $needs,
            log: Log::No,
            prepare: $prepare,
            act: None,
        }
    };
}

/// `print "done"`, in base64.
const ENCODED: &str = "cHJpbnQoImRvbmUiKQ==";

const VARIANTS: &[Variant] = &[
    lolbin!("curl-download", &["T1218", "T1105"], "curl fetches a payload", &[CURL], |stage| {
        download(stage, "curl", &["-q", "-s", "-m", "5", "--noproxy", "*", "-o"])
    }),
    lolbin!(
        "wget-download",
        &["T1218", "T1105"],
        "wget fetches a payload",
        &[Need::Tool("wget", "wget")],
        |stage| { download(stage, "wget", &["-q", "--no-proxy", "-T", "5", "-t", "1", "-O"]) }
    ),
    lolbin!(
        "base64-decode",
        &["T1140"],
        "base64 decodes a payload",
        &[SH, Need::Tool("base64", "coreutils")],
        |_| { named(Act::script(format!("echo {ENCODED} | base64 -d > payload"))?, "base64") }
    ),
    lolbin!("xxd-decode", &["T1140"], "xxd decodes a payload", &[SH, Need::Tool("xxd", "xxd")], |_| {
        named(Act::script("echo 2300 | xxd -r -p > payload")?, "xxd")
    }),
    lolbin!("python-payload", &["T1059.006"], "python runs what it decodes", &[PYTHON], |_| {
        let script = format!("import base64\nexec(base64.b64decode('{ENCODED}'))");
        named(Act::tool("python3", ["-c", &script])?, "python3")
    }),
    lolbin!("perl-payload", &["T1059"], "perl runs what it decodes", &[PERL], |_| {
        // Without a module: Debian's smallest perl has none.
        let script = format!(
            "$_='{ENCODED}';tr#A-Za-z0-9+/##cd;tr#A-Za-z0-9+/# -_#;eval unpack('u',chr(32+length()*3/4).$_)"
        );
        named(Act::tool("perl", ["-e", &script])?, "perl")
    }),
    lolbin!("dd-payload", &["T1218"], "dd writes a payload", &[], |stage| {
        let to = stage.sandbox.path("payload")?.display().to_string();
        named(Act::tool("dd", ["if=/dev/zero", &format!("of={to}"), "bs=512", "count=1"])?, "dd")
    }),
    lolbin!("chmod-payload", &["T1222.002"], "chmod +x on a payload", &[], |stage| {
        let file = stage.file("payload", b"#!/bin/false\n")?;
        named(Act::tool("chmod", ["+x", &file])?, "chmod")
    }),
    lolbin!("crontab-list", &["T1053.003"], "crontab -l", &[Need::Tool("crontab", "cron")], |_| {
        Ok(named(Act::tool("crontab", ["-l"])?, "crontab")?.proof(Proof::Ended))
    }),
    lolbin!(
        "systemctl",
        &["T1543.002"],
        "systemctl --version",
        &[Need::Tool("systemctl", "systemd")],
        |_| { named(Act::tool("systemctl", ["--version"])?, "systemctl") }
    ),
    lolbin!(
        "renamed-copy",
        &["T1036.003"],
        "base64 copied under another name",
        &[Need::Tool("base64", "coreutils")],
        |stage| {
            let from = tool("base64").ok_or_else(|| Problem::Needs("base64".into()))?;
            let copy = stage.copy(from, "kworker")?;
            Ok(Act::new(&copy, ["--version"]).sign(Sign::exec(copy.display().to_string())))
        }
    ),
];

/// The program that must be seen is this tool.
fn named(act: Act, name: &str) -> Result<Act, Problem> {
    Ok(act.sign(started(name)?))
}

fn download(stage: &mut Stage, name: &str, options: &[&str]) -> Result<Act, Problem> {
    let from = stage.listen(stage.port(8080), Talk::Http)?;
    let to = stage.sandbox.path("payload")?.display().to_string();
    let url = format!("http://{from}/payload");
    let words: Vec<&str> = options.iter().copied().chain([to.as_str(), url.as_str()]).collect();
    Ok(named(Act::tool(name, words)?, name)?.sign(Sign::Connect { address: from }).proof(Proof::Connected(1)))
}
