//! A bill of materials in CycloneDX 1.5, from cargo's lock file: what both binaries are linked from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::{Value, json};

use super::{DistError, Release, archive, at, build::Triple};
use crate::tools;

/// Writes it for a target.
pub(super) fn write(release: &Release<'_>, triple: Triple) -> Result<PathBuf, DistError> {
    let mut cargo = tools::plain_cargo(release.root);
    cargo.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", triple.name()]);
    let text = tools::output(&mut cargo)?;
    let metadata: Value =
        serde_json::from_str(&text).map_err(|error| DistError::Metadata(error.to_string()))?;
    let mut date = std::process::Command::new("date");
    let date = tools::output(date.args(["--utc", "--date", &format!("@{}", release.epoch), "+%FT%TZ"]))?;
    let bom = bill(&metadata, release.version, date.trim())
        .ok_or_else(|| DistError::Metadata("agent or fleet-server is not among them".to_owned()))?;
    let file = release.out.join(format!("{}.cdx.json", archive::name(release, triple)));
    let mut text =
        serde_json::to_string_pretty(&bom).map_err(|error| DistError::Metadata(error.to_string()))?;
    text.push('\n');
    at(&file, fs::write(&file, text))?;
    Ok(file)
}

/// `None` when our own packages are not there.
fn bill(metadata: &Value, version: &str, timestamp: &str) -> Option<Value> {
    let packages = metadata["packages"].as_array()?;
    let by_id: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let own = |name: &str| {
        packages.iter().find(|package| package["name"] == name && package["source"].is_null())?["id"].as_str()
    };
    let mut waiting = vec![own("agent")?, own("fleet-server")?];
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        if edges.contains_key(id) {
            continue;
        }
        let linked: BTreeSet<&str> = nodes.get(id).map(|node| linked(node)).unwrap_or_default();
        waiting.extend(&linked);
        edges.insert(id, linked);
    }
    let reference = |id: &str| by_id.get(id).map(|package| reference(package)).unwrap_or_default();
    let components: Vec<Value> =
        edges.keys().filter_map(|id| by_id.get(id)).map(|package| component(package)).collect();
    let dependencies: Vec<Value> = edges
        .iter()
        .map(|(id, linked)| {
            let on: BTreeSet<String> = linked.iter().map(|id| reference(id)).collect();
            json!({ "ref": reference(id), "dependsOn": on })
        })
        .collect();
    Some(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": timestamp,
            "component": {
                "type": "application", "bom-ref": "behaveguard", "name": "behaveguard", "version": version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What a package is linked with: no tools of its build, nothing of its tests.
fn linked(node: &Value) -> BTreeSet<&str> {
    let all = node["deps"].as_array().into_iter().flatten();
    let is_linked =
        |dep: &&Value| dep["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null());
    all.filter(is_linked).filter_map(|dep| dep["pkg"].as_str()).collect()
}

/// By which package URL the package is known.
fn reference(package: &Value) -> String {
    let (name, version) = (&package["name"], &package["version"]);
    format!("pkg:cargo/{}@{}", name.as_str().unwrap_or_default(), version.as_str().unwrap_or_default())
}

fn component(package: &Value) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "scope": "required",
    });
    if let Some(license) = package["license"].as_str() {
        // Cargo's older form of "or".
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if package["source"].is_string() {
        component["purl"] = reference(package).into();
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_in_the_bill_and_tools_and_tests_are_not() {
        let package = |name: &str, source: Value| json!({ "id": name, "name": name, "version": "1.0.0", "source": source, "license": "MIT/Apache-2.0" });
        let registry = || json!("registry+https://example.org");
        let dep = |to: &str, kind: Value| json!({ "pkg": to, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("agent", Value::Null), package("fleet-server", Value::Null), package("a", registry()),
                package("b", registry()), package("cc", registry()), package("tempfile", registry()),
            ],
            "resolve": { "nodes": [
                { "id": "agent", "deps": [dep("a", Value::Null), dep("cc", json!("build")), dep("tempfile", json!("dev"))] },
                { "id": "fleet-server", "deps": [dep("b", Value::Null)] },
                { "id": "a", "deps": [dep("b", Value::Null)] },
                { "id": "b", "deps": [] }, { "id": "cc", "deps": [] }, { "id": "tempfile", "deps": [] },
            ] },
        });
        let bom = bill(&metadata, "0.1.0", "2026-01-01T00:00:00Z").unwrap();
        let names: Vec<&str> =
            bom["components"].as_array().unwrap().iter().filter_map(|part| part["name"].as_str()).collect();
        assert_eq!(names, ["a", "agent", "b", "fleet-server"]);
        assert_eq!(bom["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bom["components"][0]["purl"], "pkg:cargo/a@1.0.0");
        let of_agent =
            bom["dependencies"].as_array().unwrap().iter().find(|one| one["ref"] == "pkg:cargo/agent@1.0.0");
        assert_eq!(of_agent.unwrap()["dependsOn"], json!(["pkg:cargo/a@1.0.0"]));
        assert_eq!(bom["metadata"]["timestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(bill(&json!({ "packages": [] }), "0", "0"), None);
    }
}
