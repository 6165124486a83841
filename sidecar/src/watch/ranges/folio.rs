//! Which bytes a folio may span, of which only the first page is known.

use std::fs;

/// The shapes folios can have on this machine.
///
/// A folio of order `n` holds `1 << n` pages and is naturally aligned in its file. Its order is not in the event, so it
/// may be anything up to the alignment of its first page, within the largest order the page cache uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folios {
    pub(super) page_bytes: u64,
    pub(super) max_order: u32,
}

/// Bytes of a page of memory.
pub(super) fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("every system has pages")
}

/// The largest order a page cache slot can hold on any configuration of the kernel.
const ORDER_LIMIT: u32 = 11;

impl Folios {
    /// What this machine's page cache uses: up to a huge page.
    pub(super) fn here() -> Self {
        let page_bytes = page_bytes() as u64;
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let max_order = match huge {
            Some(bytes) if bytes >= page_bytes => (bytes / page_bytes).ilog2().min(ORDER_LIMIT),
            _ => ORDER_LIMIT,
        };
        Self { page_bytes, max_order }
    }

    /// The bytes `start..end` that the folio beginning at `page` spans at most.
    pub(super) fn span(self, page: u64) -> (u64, u64) {
        let order = if page == 0 { self.max_order } else { page.trailing_zeros().min(self.max_order) };
        let start = page.saturating_mul(self.page_bytes);
        (start, start.saturating_add(self.page_bytes << order))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_span_covers_every_aligned_folio(page in 0u64..1 << 40, order in 0u32..=9) {
            let folios = Folios { page_bytes: 4096, max_order: 9 };
            let first = page >> order << order;
            let (start, end) = folios.span(first);
            prop_assert!(start == first * 4096 && end >= (first + (1 << order)) * 4096);
            prop_assert!(end - start <= 2 << 20);
        }

        #[test]
        fn no_page_number_overflows(page: u64) {
            let (start, end) = Folios { page_bytes: 65536, max_order: 11 }.span(page);
            prop_assert!(start <= end);
        }
    }
}
