//! What a request is answered with when it cannot be served.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::pki::PkiError;
use crate::store::StoreError;

/// A refusal: the client gets `public` and `hint`, the log gets `internal`.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {internal}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub public: String,
    /// What to do about it.
    pub hint: &'static str,
    /// Details for the operator; never sent.
    pub internal: String,
}

/// A problem of RFC 9457; `code` and `hint` are ours.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    hint: &'a str,
}

impl ApiError {
    /// A refusal whose reason may be told.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: &'static str,
        public: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        let public = public.into();
        Self { status, code, internal: public.clone(), public, hint }
    }

    /// Nothing there.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"), "check the address")
    }

    /// Something is full for now.
    #[must_use]
    pub fn busy(public: &str, hint: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", public, hint)
    }

    /// A request that can be understood, and asks for what cannot be.
    #[must_use]
    pub fn unprocessable(public: impl Into<String>) -> Self {
        let hint = "see the API's documentation";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", public, hint)
    }

    /// A request that cannot be understood.
    #[must_use]
    pub fn bad_request(public: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", public, "see the API's documentation")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::TooLong) {
            return Self::busy("the search took too long", "narrow it: name a device, a program or a time");
        }
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "store",
            public: "the store did not answer".into(),
            hint: "try again; the server's log says more",
            internal: format!("{error} ({error:?})"),
        }
    }
}

impl From<PkiError> for ApiError {
    fn from(error: PkiError) -> Self {
        let (status, code, public) = match error {
            PkiError::Request(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "bad_csr", "the signing request cannot be used")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "pki", "the certificate could not be made"),
        };
        let hint = "send a PEM signing request for an ECDSA P-256 or Ed25519 key";
        Self { status, code, public: public.into(), hint, internal: format!("{error:?}") }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            log::error!("a request failed: {self}");
        }
        let body = Json(Problem {
            r#type: format!("urn:behaveguard:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("refused"),
            status: self.status.as_u16(),
            detail: &self.public,
            code: self.code,
            hint: self.hint,
        });
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}
