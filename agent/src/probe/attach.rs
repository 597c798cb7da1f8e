//! Tries each layer's backends in order, by loading and attaching, and keeps the first that works.

use agent_ebpf::records::names;
use aya::{
    Btf, Ebpf,
    maps::{MapData, ProgramArray},
    programs::{BtfTracePoint, KProbe, Program, ProgramError, RawTracePoint, TracePoint},
};
use models::{
    chain::chain,
    syscalls::{Arch, numbers},
    wire::LayerState,
};

use super::layers::{
    Backend, CALL_LAYERS, CLASSIC, CallLayer, HOOK_LAYERS, Hook, NETWORK_BYTES, Needs, TAIL_CALL,
};
use super::narrow;

/// What the kernel's type information told.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// Offsets in `task_struct`.
    pub(super) task: bool,
    /// Offset of `linux_binprm.filename`.
    pub(super) filename: bool,
}

/// Attaches every layer.
pub(super) fn all(
    programs: &mut Ebpf,
    btf: Option<&Btf>,
    known: Known,
    arch: Arch,
    forced_off: &[String],
) -> Vec<LayerState> {
    let mut layers = Vec::new();
    let first_of = |state: &mut LayerState, programs: &mut Ebpf, backends: &[Backend]| {
        backends.iter().any(|backend| {
            let tried = allowed(forced_off, &state.layer, backend.name)
                .and_then(|()| attach(programs, backend, btf, known));
            note(state, backend.name, tried)
        })
    };
    for layer in HOOK_LAYERS {
        let mut state = LayerState { layer: layer.name.to_owned(), ..LayerState::default() };
        first_of(&mut state, programs, layer.backends);
        layers.push(state);
    }
    let dispatcher = layers[0].backend.clone();
    for layer in CALL_LAYERS {
        let mut state = LayerState { layer: layer.name.to_owned(), ..LayerState::default() };
        if !first_of(&mut state, programs, layer.better) {
            // What calls it was attached before; on a classic tracepoint it would not call.
            let called =
                layer.behind.is_none() || layers.last().is_some_and(|before| before.backend == TAIL_CALL);
            let tried = allowed(forced_off, layer.name, TAIL_CALL)
                .and_then(|()| called.then_some(()).ok_or_else(|| "nothing calls it".to_owned()))
                .and_then(|()| tail_call(programs, layer, btf, arch, &dispatcher));
            if !note(&mut state, TAIL_CALL, tried) {
                let tried =
                    allowed(forced_off, layer.name, CLASSIC).and_then(|()| classic(programs, layer, arch));
                note(&mut state, CLASSIC, tried);
            }
        }
        layers.push(state);
    }
    layers
}

/// Whether bytes are counted from the arguments of calls.
pub(super) fn counts_calls(layers: &[LayerState]) -> bool {
    let bytes = layers.iter().find(|layer| layer.layer == NETWORK_BYTES);
    bytes.is_some_and(|layer| layer.backend == TAIL_CALL || layer.backend == CLASSIC)
}

fn allowed(forced_off: &[String], layer: &str, backend: &str) -> Result<(), String> {
    let off = forced_off.iter().any(|f| f.split_once(':') == Some((layer, backend)));
    if off { Err("switched off".to_owned()) } else { Ok(()) }
}

fn note(state: &mut LayerState, backend: &str, tried: Result<(), String>) -> bool {
    match tried {
        Ok(()) => {
            state.backend = backend.to_owned();
            true
        }
        Err(reason) => {
            log::debug!("layer {}: {backend}: {reason}", state.layer);
            state.failed.push((backend.to_owned(), reason));
            false
        }
    }
}

fn attach(programs: &mut Ebpf, backend: &Backend, btf: Option<&Btf>, known: Known) -> Result<(), String> {
    match backend.needs {
        Needs::Task if !known.task => return Err(format!("{NO_BTF}: offsets in task_struct")),
        Needs::Filename if !known.filename => {
            return Err(format!("{NO_BTF}: offset of linux_binprm.filename"));
        }
        _ => {}
    }
    let tried = backend.programs.iter().try_for_each(|(name, hook)| attach_one(programs, name, *hook, btf));
    if tried.is_err() {
        for (name, _) in backend.programs {
            // Half of a backend must not count beside the next one. A program that was not loaded cannot be unloaded.
            let _ = match programs.program_mut(name) {
                Some(Program::BtfTracePoint(p)) => p.unload(),
                Some(Program::RawTracePoint(p)) => p.unload(),
                Some(Program::TracePoint(p)) => p.unload(),
                Some(Program::KProbe(p)) => p.unload(),
                _ => Ok(()),
            };
        }
    }
    tried
}

fn attach_one(programs: &mut Ebpf, name: &str, hook: Hook, btf: Option<&Btf>) -> Result<(), String> {
    load(programs, name, hook, btf)?;
    match (programs.program_mut(name).ok_or(MISSING)?, hook) {
        (Program::BtfTracePoint(p), _) => p.attach().map(drop),
        (Program::RawTracePoint(p), Hook::Raw(name)) => p.attach(name).map(drop),
        (Program::KProbe(p), Hook::Kprobe(function)) => p.attach(function, 0).map(drop),
        (Program::TracePoint(p), Hook::Classic(category, name)) => p.attach(category, name).map(drop),
        _ => return Err(MISSING.to_owned()),
    }
    .map_err(|e| format!("attach: {}", reason(&e)))
}

fn load(programs: &mut Ebpf, name: &str, hook: Hook, btf: Option<&Btf>) -> Result<(), String> {
    let program = programs.program_mut(name).ok_or(MISSING)?;
    let wrong = |e: ProgramError| format!("load: {}", reason(&e));
    match hook {
        Hook::Btf(tracepoint) => {
            let btf = btf.ok_or(NO_BTF)?;
            <&mut BtfTracePoint>::try_from(program).map_err(wrong)?.load(tracepoint, btf).map_err(wrong)
        }
        Hook::Raw(_) => <&mut RawTracePoint>::try_from(program).map_err(wrong)?.load().map_err(wrong),
        Hook::Kprobe(_) => <&mut KProbe>::try_from(program).map_err(wrong)?.load().map_err(wrong),
        Hook::Classic(..) => <&mut TracePoint>::try_from(program).map_err(wrong)?.load().map_err(wrong),
    }
}

/// Puts the layer's program into the dispatcher's array at each of its calls.
fn tail_call(
    programs: &mut Ebpf,
    layer: &CallLayer,
    btf: Option<&Btf>,
    arch: Arch,
    dispatcher: &str,
) -> Result<(), String> {
    let (program, hook, array) = match dispatcher {
        "tp_btf/sys_enter" => (layer.btf, Hook::Btf("sys_enter"), names::CALLS_BTF),
        "raw_tp/sys_enter" => (layer.raw, Hook::Raw("sys_enter"), names::CALLS_RAW),
        _ => return Err("no program on sys_enter".to_owned()),
    };
    load(programs, program, hook, btf)?;
    let fd = match programs.program(program).ok_or(MISSING)? {
        Program::BtfTracePoint(p) => p.fd(),
        Program::RawTracePoint(p) => p.fd(),
        _ => return Err(MISSING.to_owned()),
    };
    let fd = fd.and_then(|fd| Ok(fd.try_clone()?)).map_err(|e| reason(&e))?;
    let map = programs.map_mut(array).ok_or(MISSING)?;
    let mut array: ProgramArray<&mut MapData> = ProgramArray::try_from(map).map_err(|e| chain(&e))?;
    if let Some(place) = layer.behind {
        return array.set(place, &fd, 0).map_err(|e| chain(&e));
    }
    let own = layer.calls.iter().flat_map(|name| narrow::places(arch, name));
    for place in own.chain(layer.also.iter().map(|a| u32::from(a.0))) {
        array.set(place, &fd, 0).map_err(|e| chain(&e))?;
    }
    Ok(())
}

/// Attaches the layer's program to the classic tracepoint of each of its calls.
fn classic(programs: &mut Ebpf, layer: &CallLayer, arch: Arch) -> Result<(), String> {
    load(programs, layer.classic, Hook::Classic("syscalls", ""), None)?;
    let program = programs.program_mut(layer.classic).ok_or(MISSING)?;
    let program = <&mut TracePoint>::try_from(program).map_err(|e| reason(&e))?;
    let own = layer.calls.iter().filter(|name| numbers(arch, name).next().is_some());
    let mut attached = 0;
    let mut last = String::new();
    for name in own.chain(layer.also.iter().map(|(_, name)| name)) {
        match program.attach("syscalls", &format!("sys_enter_{name}")) {
            Ok(_) => attached += 1,
            // `openat2` is missing before Linux 5.6; the others are worth having.
            Err(error) => last = format!("attach: {name}: {}", reason(&error)),
        }
    }
    if attached > 0 { Ok(()) } else { Err(last) }
}

/// The error and its causes in one line; of the verifier's log only the last lines.
pub(super) fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let tail: Vec<_> = log.lines().rev().filter(|l| !l.trim().is_empty()).take(4).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            if tail.is_empty() { io_error.to_string() } else { format!("{io_error}: {}", tail.join(" | ")) }
        }
        other => chain(other),
    }
}

const MISSING: &str = "the embedded object lacks the program or map";
const NO_BTF: &str = "the kernel offers no type information (CONFIG_DEBUG_INFO_BTF)";
