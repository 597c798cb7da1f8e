//! The dashboard's files, as they are in this program: nothing is built or fetched from elsewhere.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

const FILES: [(&str, &str, &str); 15] = [
    ("/", HTML, include_str!("dashboard/index.html")),
    ("/dashboard/style.css", CSS, include_str!("dashboard/style.css")),
    ("/dashboard/app.js", JS, include_str!("dashboard/app.js")),
    ("/dashboard/server.js", JS, include_str!("dashboard/server.js")),
    ("/dashboard/dom.js", JS, include_str!("dashboard/dom.js")),
    ("/dashboard/overview.js", JS, include_str!("dashboard/overview.js")),
    ("/dashboard/alerts.js", JS, include_str!("dashboard/alerts.js")),
    ("/dashboard/devices.js", JS, include_str!("dashboard/devices.js")),
    ("/dashboard/orders.js", JS, include_str!("dashboard/orders.js")),
    ("/dashboard/baselines.js", JS, include_str!("dashboard/baselines.js")),
    ("/dashboard/rollouts.js", JS, include_str!("dashboard/rollouts.js")),
    ("/dashboard/channels.js", JS, include_str!("dashboard/channels.js")),
    ("/dashboard/settings.js", JS, include_str!("dashboard/settings.js")),
    ("/dashboard/updates.js", JS, include_str!("dashboard/updates.js")),
    ("/icon.svg", "image/svg+xml", include_str!("dashboard/icon.svg")),
];

/// Routes to all of them.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { page(kind, text) }))
    })
}

fn page(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
