//! What no kernel says before an old one refuses to load the programs.

use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use crate::root;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// Number of the helper `bpf_tail_call`.
const TAIL_CALL: i32 = 12;
/// In the source register of a call: to a function of the program's own.
const TO_FUNCTION: u8 = 1;

fn calls(instructions: &[bpf_insn]) -> impl Iterator<Item = &bpf_insn> {
    instructions.iter().filter(|instruction| instruction.code == CALL)
}

#[test]
fn no_kernel_program_that_makes_a_tail_call_calls_a_function_of_its_own() {
    // arm64 before Linux 6.0 cannot do both. The compiler calls `memset` and `memcpy` for large plain writes.
    let object = std::fs::read(root().join("agent-ebpf/prebuilt/behaveguard.bpf.o")).unwrap();
    let object = Object::parse(&object).unwrap();
    let mut tail_calls = 0;
    for function in object.functions.values() {
        let to_programs =
            calls(&function.instructions).any(|call| call.src_reg() != TO_FUNCTION && call.imm == TAIL_CALL);
        let to_functions = calls(&function.instructions).any(|call| call.src_reg() == TO_FUNCTION);
        assert!(!to_programs || !to_functions, "{} does both", function.name);
        tail_calls += u32::from(to_programs);
    }
    assert!(tail_calls >= 4, "the dispatchers and opens make tail calls: {tail_calls}");
}
