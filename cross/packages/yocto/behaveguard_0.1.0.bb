SUMMARY = "Behavioural anomaly detection of this gateway"
LICENSE = "MIT & GPL-2.0-only"
LIC_FILES_CHKSUM = "file://LICENSE;md5=86fd46e98b6e97318894a63d018cc2b4"

# The release archive of `cargo xtask dist`: static binaries, so that neither Rust nor a matching libc is needed.
BEHAVEGUARD_TRIPLE:aarch64 = "aarch64-unknown-linux-musl"
BEHAVEGUARD_TRIPLE:x86-64 = "x86_64-unknown-linux-musl"
SRC_URI = "file://behaveguard-${PV}-${BEHAVEGUARD_TRIPLE}.tar.gz"
S = "${UNPACKDIR}/behaveguard-${PV}-${BEHAVEGUARD_TRIPLE}"

COMPATIBLE_HOST = "(aarch64|x86_64).*-linux"
INSANE_SKIP:${PN} += "already-stripped"
# Nothing is compiled.
INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_SYSROOT_STRIP = "1"

inherit systemd
SYSTEMD_SERVICE:${PN} = "behaveguard.service"
CONFFILES:${PN} = "${sysconfdir}/behaveguard/agent.toml"

do_install() {
    install -D -m 0755 ${S}/bin/behaveguard ${D}${bindir}/behaveguard
    install -D -m 0644 ${S}/systemd/behaveguard.service ${D}${systemd_system_unitdir}/behaveguard.service
    install -D -m 0600 ${S}/etc/agent.toml ${D}${sysconfdir}/behaveguard/agent.toml
}
