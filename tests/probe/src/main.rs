#![no_std]
#![no_main]
mod entry;
use core::arch::asm;
#[unsafe(no_mangle)]
extern "C" fn ring3_main(_start_info: u64) -> ! {
    for b in b"hello\n" {
        unsafe { asm!("out dx, al", in("dx") 0x3f8u16, in("al") *b) };
    }
    unsafe { asm!("out dx, al", in("dx") 0xf4u16, in("al") 0u8) };
    loop {}
}
#[unsafe(no_mangle)]
extern "C" fn fault_report() -> ! {
    unsafe { asm!("out dx, al", in("dx") 0x3f8u16, in("al") b'F') };
    unsafe { asm!("out dx, al", in("dx") 0xf4u16, in("al") 1u8) };
    loop {}
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
