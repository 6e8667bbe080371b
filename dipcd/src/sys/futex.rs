//! Waking whoever sleeps on words of a shared file: the kernel knows such a futex by its file and
//! offset, so any mapping of the file will do.
//!
//! The page is mapped for the instant of the call. A lasting mapping could plant zeros: a wake in a
//! hole fills it (tried), so the caller sees to it that the page is there.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::AtomicU32;

/// Wakes all who sleep on these words of one page of a file: how many. `page` is the page's
/// offset in the file, `words` are offsets in the page, multiples of four; others are passed over.
/// The page must be there, and stay there for the length of the call.
pub fn wake_all(file: impl AsFd, page: u64, words: &[u32]) -> io::Result<usize> {
    let bytes = rustix::param::page_size();
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice touches nobody's memory.
    let mapped = unsafe { mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, file, page) }?;
    let mut woken = Ok(0);
    for &word in words {
        let at = word as usize;
        if !at.is_multiple_of(4) || at + 4 > bytes {
            continue;
        }
        // SAFETY: it lies within the mapping, as was just checked.
        let address = unsafe { mapped.byte_add(at) }.cast::<u32>();
        // SAFETY: aligned, mapped until `munmap` below, and shared memory is used by atomics only.
        let word = unsafe { AtomicU32::from_ptr(address) };
        woken = futex::wake(word, futex::Flags::empty(), i32::MAX as u32)
            .map_err(io::Error::from)
            .and_then(|count| woken.map(|before| before + count));
    }
    // SAFETY: the whole mapping made above, to which no reference is left.
    unsafe { munmap(mapped, bytes) }?;
    woken
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::sync::atomic::Ordering;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn who_sleeps_on_another_mapping_of_the_file_is_woken() {
        let bytes = rustix::param::page_size();
        let file = memfd_create("futex-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 2 * bytes as u64).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let mapped =
            unsafe { mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, &file, bytes as u64) };
        let address = mapped.unwrap().cast::<u32>().wrapping_add(2);
        // SAFETY: aligned, and never unmapped in this test.
        let word = unsafe { AtomicU32::from_ptr(address) };
        let sleeper = thread::spawn(move || {
            while word.load(Ordering::Acquire) == 0 {
                let _ = futex::wait(word, futex::Flags::empty(), 0, None);
            }
        });
        thread::sleep(Duration::from_millis(20));
        word.store(1, Ordering::Release);
        let mut woken = 0;
        while woken == 0 && !sleeper.is_finished() {
            woken = wake_all(&file, bytes as u64, &[3, 8, 4096]).unwrap();
        }
        sleeper.join().unwrap();
        assert_eq!(woken, 1, "it did not wake by itself");
    }
}
