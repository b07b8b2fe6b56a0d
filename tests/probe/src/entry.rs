//! From the PVH entry to Rust in ring 3, in as few instructions as possible.
//!
//! The very first act is one byte on the first serial port: the start-time benchmark measures until then. Ring 0 may be
//! emulated (about a million instructions per second on a machine without hardware virtualization), so ring 0 only
//! loads what is already built in the image and leaves with `iretq`; IDT gates and everything else are filled in by
//! ring 3, which owns all memory through user-accessible identity pages and all ports through the I/O bitmap of the
//! TSS. (IOPL 3 would be shorter, but an emulated `iretq` may clear it.)
//!
//! PVH entry state: `xen/include/public/arch-x86/hvm/start_info.h`: 32-bit protected mode, no paging, `ebx` = start
//! info.

use core::arch::global_asm;

/// First interrupt vector that tests may use for messages.
pub(crate) const FIRST_VECTOR: u8 = 0x40;
/// Number of interrupt vectors with a counting handler.
pub(crate) const VECTORS: usize = 64;
/// Page tables for memory above 4 GiB. Enough for BARs in three places that are 512 GiB apart.
pub(crate) const PAGE_TABLE_POOL: usize = 8;
/// Distance between two handlers in the stub tables.
pub(crate) const STUB_BYTES: u64 = 32;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                     /* name size */
    .long 8                     /* descriptor size */
    .long 18                    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .section .text.entry, "ax", @progbits
    .code32
    .globl pvh_entry
pvh_entry:
    movw $0x3f8, %dx
    movb $'\n', %al
    outb %al, %dx

    movb $0xff, %al             /* no line of the old interrupt controllers may reach the empty IDT */
    outb %al, $0x21
    outb %al, $0xa1

    movl $ring0_stack_top, %esp
    movl $tss, %eax
    movl $ring0_stack_top, tss + 4
    movw $104, tss + 102        /* the all-clear I/O bitmap opens every port */
    movw %ax, gdt_tss + 2
    shrl $16, %eax
    movb %al, gdt_tss + 4
    movb %ah, gdt_tss + 7
    lgdtl gdt_pointer
    movl $0x620, %eax           /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x100, %eax            /* LME */
    wrmsr
    movl $0x80000033, %eax      /* PG, NE, ET, MP, PE; EM and TS clear: SSE works */
    movl %eax, %cr0
    ljmpl $0x08, $long_entry

    .code64
long_entry:
    movl $0x28, %eax
    ltr %ax
    lidtq idt_pointer
    movl $0x1b, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %ebx, %edi             /* first argument: the start info */
    pushq $0x1b                 /* ss: user data */
    pushq $ring3_stack_top - 8  /* as after a call: 8 off a 16-byte boundary */
    pushq $0x202                /* rflags: IF */
    pushq $0x23                 /* cs: user code */
    pushq $ring3_main
    iretq

    /* Exceptions: note what happened and return to ring 3 in fault_entry, where reporting is cheap. */
    .balign 32
    .globl exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 32
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr

exception_common:
    popq fault_vector
    popq fault_error
    pushq %rax
    movq 8(%rsp), %rax
    movq %rax, fault_rip
    movq %cr2, %rax
    movq %rax, fault_address
    movq $fault_entry, 8(%rsp)
    popq %rax
    iretq

fault_entry:
    andq $-16, %rsp
    call fault_report
    ud2

    /* Messages: count and acknowledge (xAPIC EOI). */
    .balign 32
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept {vectors}
    .balign 32
    incl interrupt_counts + 4 * vector
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq
    .set vector, vector + 1
    .endr
    .balign 32
    .globl spurious_stub
spurious_stub:
    iretq

    /* Exception of a ring 3 that wants to sleep: it returns to the same instruction, and here again. */
    .balign 32
    .globl halt_stub
halt_stub:
    sti
    hlt
    iretq

    /* Exception of a ring 3 that waits for another message than the %eax that have come: it returns behind it. */
    .balign 32
    .globl wait_stub
wait_stub:
    cmpl %eax, interrupt_counts
    jne 1f
    sti
    hlt
1:
    addq $2, (%rsp)
    iretq

    .section .tables, "aw", @progbits
    .balign 4096
    .globl pml4
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
    .globl pdpt
pdpt:
    .quad page_dirs + 0x0007
    .quad page_dirs + 0x1007
    .quad page_dirs + 0x2007
    .quad page_dirs + 0x3007
    .fill 508, 8, 0
page_dirs:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x87
    .set page, page + 1
    .endr

    .balign 16
gdt:
    .quad 0
    .quad 0x00af9a000000ffff    /* 0x08: ring 0 code, 64-bit */
    .quad 0x00cf92000000ffff    /* 0x10: ring 0 data */
    .quad 0x00cff2000000ffff    /* 0x18: ring 3 data */
    .quad 0x00affa000000ffff    /* 0x20: ring 3 code, 64-bit */
gdt_tss:
    .quad 0x0000890000002068    /* 0x28: TSS and I/O bitmap, base filled in at entry */
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad idt
    .section .bss.entry, "aw", @nobits
    .balign 4096
    .globl idt
idt:
    .skip 4096
    .globl page_table_pool
page_table_pool:
    .skip 4096 * {page_table_pool}
    .skip 4096
ring0_stack_top:
tss:
    .skip 104 + 8192 + 8
    .balign 16
    .skip 65536
    .globl ring3_stack_top
ring3_stack_top:
    .skip 16
    .globl interrupt_counts
interrupt_counts:
    .skip 4 * {vectors}
    .globl fault_vector, fault_error, fault_rip, fault_address
fault_vector:  .skip 8
fault_error:   .skip 8
fault_rip:     .skip 8
fault_address: .skip 8
    .text
    "#,
    vectors = const VECTORS,
    page_table_pool = const PAGE_TABLE_POOL,
    options(att_syntax)
);
