//! The API's description, OpenAPI 3.1, made from the handlers themselves; served at `/api/v1/openapi.json`.
//!
//! What is the same for every operation is added here: the token and the role that it needs, and how it refuses.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

use crate::access::Role;

/// Who may use an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Needs {
    /// A token of a user with this role at least.
    Role(Role),
    /// An enrolment token or a device's key in the body, or the cookie of a sign-in.
    Key,
    /// A device's certificate, in TLS.
    Certificate,
    /// Nothing.
    Nothing,
}

/// Describes the API from its parts: the operations, and who may use them.
pub(super) fn describe(parts: Vec<(OpenApi, Needs)>) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for (part, needs) in parts {
        let mut part = serde_json::to_value(part).expect("a description has a JSON form");
        for (path, item) in taken(&mut part["paths"]) {
            let Value::Object(operations) = item else { continue };
            for (method, mut operation) in operations {
                complete(&path, &mut operation, needs);
                paths.entry(format!("/api/v1{path}")).or_insert_with(|| json!({}))[method] = operation;
            }
        }
        schemas.extend(taken(&mut part["components"]["schemas"]));
    }
    paths.insert("/api/v1/openapi.json".into(), of_itself());
    let mut described = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "BehaveGuard fleet server",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT", "identifier": "MIT" },
            "description": "Times end in their unit: `_unix_ms` is milliseconds since 1970, `_unix_s` seconds; what begins \
                            with `received_` is on the server's clock, the rest on the clock of whoever it is about.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The owner's is in `api.token` in the server's state folder, others are made with \
                                    `behaveguard-fleet user token`.",
                },
                "certificate": {
                    "type": "mutualTLS",
                    "description": "The client certificate that a device got when it enrolled.",
                },
            },
        },
    });
    limit(&mut described);
    described
}

fn taken(value: &mut Value) -> Map<String, Value> {
    match value.take() {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn of_itself() -> Value {
    json!({ "get": {
        "tags": ["system"],
        "operationId": "system_openapi",
        "summary": "This description.",
        "responses": { "200": {
            "description": "Done.",
            "content": { "application/json": { "schema": { "type": "object" } } },
        } },
    } })
}

/// The name, who may use it, and the refusals that any such operation has.
fn complete(path: &str, operation: &mut Value, needs: Needs) {
    let tag = operation["tags"][0].as_str().unwrap_or_default();
    let name = operation["operationId"].as_str().unwrap_or_default();
    operation["operationId"] = format!("{tag}_{name}").into();
    let mut refusals = BTreeSet::from([503]);
    if path.contains('{') {
        refusals.extend([400, 404]);
    }
    if operation.get("requestBody").is_some() {
        refusals.extend([400, 404, 422]);
    }
    if let Some(Value::Array(parameters)) = operation.get_mut("parameters") {
        refusals.extend([400, 422]);
        for parameter in parameters {
            // What may be left out of a query cannot be null in it.
            if parameter["in"] == "query" {
                without_null(&mut parameter["schema"]);
            }
        }
    }
    match needs {
        Needs::Role(role) => {
            refusals.extend([401, 403, 429]);
            operation["security"] = json!([{ "bearer": [] }]);
            operation["description"] = format!("Needs the role {role}.").into();
        }
        Needs::Key => {
            refusals.insert(429);
        }
        Needs::Certificate => {
            refusals.extend([401, 403, 429]);
            operation["security"] = json!([{ "certificate": [] }]);
        }
        Needs::Nothing => {}
    }
    for status in refusals {
        let response = &mut operation["responses"][status.to_string()];
        if response.is_null() {
            *response = json!({ "description": meaning(status), "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Problem" },
            } } });
        }
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, response) in responses {
        let description = response["description"].as_str().unwrap_or_default();
        if description.is_empty() {
            response["description"] = "Done.".into();
        }
        // RFC 9457 gives problems a media type of their own.
        if status.as_str() >= "400"
            && let Some(content) = response.get_mut("content").and_then(Value::as_object_mut)
            && let Some(problem) = content.remove("application/json")
        {
            content.insert("application/problem+json".into(), problem);
        }
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request cannot be understood.",
        401 => "A valid token, or a device's certificate, is needed.",
        403 => "The token's role is not enough, or the device is not welcome any more.",
        404 => "There is no such thing.",
        422 => "The request asks for what cannot be.",
        429 => "Too many requests; `Retry-After` says when to come back.",
        _ => "The store did not answer, or something is full.",
    }
}

fn without_null(schema: &mut Value) {
    if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|kind| kind != "null");
        if let [only] = &types[..] {
            schema["type"] = only.clone();
        }
    }
    if let Some(any) = schema.get_mut("oneOf").and_then(Value::as_array_mut) {
        any.retain(|one| one["type"] != "null");
        if let [only] = &any[..] {
            *schema = only.clone();
        }
    }
}

/// Numbers say how large they may be: ours are unsigned, and the formats of OpenAPI are not. What is one of several kinds has the
/// fields of its kind and no other.
fn limit(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let max = match map.get("format").and_then(Value::as_str) {
                Some("int64") => Some(u64::MAX),
                Some("int32") => Some(u64::from(u32::MAX)),
                _ => None,
            };
            if let Some(max) = max {
                map.remove("format");
                map.entry("maximum").or_insert_with(|| max.into());
            }
            let kinds = map.get("properties").and_then(|fields| fields["kind"]["enum"].as_array());
            if kinds.is_some_and(|kinds| kinds.len() == 1) {
                map.insert("additionalProperties".into(), false.into());
            }
            map.values_mut().for_each(limit);
        }
        Value::Array(list) => list.iter_mut().for_each(limit),
        _ => {}
    }
}
