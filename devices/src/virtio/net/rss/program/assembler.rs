//! Instructions of BPF (RFC 9669), as many kinds as the program needs, and labels for jumps forward.

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Register(u8);

pub(super) const R0: Register = Register(0);
pub(super) const R1: Register = Register(1);
pub(super) const R2: Register = Register(2);
pub(super) const R3: Register = Register(3);
pub(super) const R4: Register = Register(4);
pub(super) const R5: Register = Register(5);
pub(super) const R6: Register = Register(6);
pub(super) const R7: Register = Register(7);
pub(super) const R8: Register = Register(8);
pub(super) const R9: Register = Register(9);
/// The end of the stack.
pub(super) const FRAME: Register = Register(10);

/// Bytes of a load or store, by their code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    U32 = 0x00,
    U16 = 0x08,
    U8 = 0x10,
    U64 = 0x18,
}

/// A computation on 64 bits, by its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alu {
    Add = 0x00,
    Subtract = 0x10,
    And = 0x50,
    Left = 0x60,
    Right = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// A comparison without signs, by its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum If {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// Instruction classes and modes.
const LOAD_IMMEDIATE: u8 = 0x18;
const LOAD: u8 = 0x61;
const STORE_IMMEDIATE: u8 = 0x62;
const STORE: u8 = 0x63;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const ALU64: u8 = 0x07;
const REGISTER: u8 = 0x08;

/// A 64-bit immediate that stands for the first element of the map with this descriptor (BPF_PSEUDO_MAP_VALUE).
const MAP_VALUE: Register = Register(2);

/// The kernel's function 68, `skb_load_bytes_relative`, whose last argument is where offsets begin: at the Ethernet
/// header.
const LOAD_BYTES_RELATIVE: i32 = 68;
const FROM_ETHERNET: i32 = 0;

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that is being written.
pub(super) struct Assembler {
    instructions: Vec<u64>,
    /// For each label the jumps to it, until it is placed.
    jumps: Vec<Vec<usize>>,
}

impl Assembler {
    /// An empty program.
    pub(super) fn new() -> Self {
        Self { instructions: Vec::new(), jumps: Vec::new() }
    }

    /// A label, to be placed once.
    pub(super) fn label(&mut self) -> Label {
        self.jumps.push(Vec::new());
        Label(self.jumps.len() - 1)
    }

    /// Several.
    pub(super) fn labels<const N: usize>(&mut self) -> [Label; N] {
        std::array::from_fn(|_| self.label())
    }

    /// Lets the jumps to `label` so far lead here.
    pub(super) fn place(&mut self, label: Label) {
        for at in std::mem::take(&mut self.jumps[label.0]) {
            // The whole program has fewer instructions than a jump can skip.
            let distance = u16::try_from(self.instructions.len() - at - 1).unwrap_or(0);
            self.instructions[at] |= u64::from(distance) << 16;
        }
    }

    /// The program.
    pub(super) fn finish(self) -> Vec<u64> {
        debug_assert!(self.jumps.iter().all(Vec::is_empty), "every label is placed after its jumps");
        self.instructions
    }

    /// Sets `to` to a number.
    pub(super) fn set(&mut self, to: Register, number: i32) {
        self.alu(Alu::Move, to, number);
    }

    /// Sets `to` to `from`.
    pub(super) fn mov(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::Move, to, from);
    }

    /// Computes on `to` with a number.
    pub(super) fn alu(&mut self, operation: Alu, to: Register, number: i32) {
        self.emit(ALU64 | operation as u8, to, R0, 0, number);
    }

    /// Adds `from`.
    pub(super) fn add(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::Add, to, from);
    }

    /// Subtracts `from`.
    pub(super) fn subtract(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::Subtract, to, from);
    }

    /// Adds `from` modulo two.
    pub(super) fn xor(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::Xor, to, from);
    }

    /// Keeps the bits that `from` has.
    pub(super) fn and(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::And, to, from);
    }

    /// Loads from the memory at `base`.
    pub(super) fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) {
        self.emit(LOAD | width as u8, to, base, offset, 0);
    }

    /// Stores into the memory at `base`.
    pub(super) fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) {
        self.emit(STORE | width as u8, base, from, offset, 0);
    }

    /// Stores eight zero bytes on the stack.
    pub(super) fn store_zero(&mut self, offset: i16) {
        self.emit(STORE_IMMEDIATE | Width::U64 as u8, FRAME, R0, offset, 0);
    }

    /// Goes to `label`.
    pub(super) fn jump(&mut self, label: Label) {
        self.jumps[label.0].push(self.instructions.len());
        self.emit(JUMP, R0, R0, 0, 0);
    }

    /// Goes to `label` if `register` compares so with a number.
    pub(super) fn jump_if(&mut self, register: Register, comparison: If, number: i32, label: Label) {
        self.jumps[label.0].push(self.instructions.len());
        self.emit(JUMP | comparison as u8, register, R0, 0, number);
    }

    /// Returns r0.
    pub(super) fn exit(&mut self) {
        self.emit(EXIT, R0, R0, 0, 0);
    }

    /// Sets `to` to the address of the map's element. Returns the instruction that takes the map's descriptor.
    pub(super) fn map_element(&mut self, to: Register) -> usize {
        self.emit(LOAD_IMMEDIATE, to, MAP_VALUE, 0, 0);
        self.emit(0, R0, R0, 0, 0);
        self.instructions.len() - 2
    }

    /// Copies `len` bytes of `frame`, `offset` from its Ethernet header, to the stack. r0 is zero if there are as many;
    /// r1 to r5 are lost.
    pub(super) fn load_frame(&mut self, frame: Register, offset: Register, to: i16, len: i32) {
        self.mov(R1, frame);
        self.mov(R2, offset);
        self.mov(R3, FRAME);
        self.alu(Alu::Add, R3, to.into());
        self.set(R4, len);
        self.set(R5, FROM_ETHERNET);
        self.emit(CALL, R0, R0, 0, LOAD_BYTES_RELATIVE);
    }

    fn alu_register(&mut self, operation: Alu, to: Register, from: Register) {
        self.emit(ALU64 | REGISTER | operation as u8, to, from, 0, 0);
    }

    /// `struct bpf_insn` as a number: code, registers, offset, immediate, from the lowest bits up.
    fn emit(&mut self, code: u8, to: Register, from: Register, offset: i16, number: i32) {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = number.to_le_bytes();
        self.instructions.push(u64::from_le_bytes([code, to.0 | from.0 << 4, low, high, a, b, c, d]));
    }
}
