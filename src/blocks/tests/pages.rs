//! The paged table: what it keeps, what it evicts, and readers beside a thread that evicts all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::blocks::{PAGE_BYTES, PagedTable, PinRefused, WORDS_PER_PAGE};
use crate::sim::Random;

/// What the tests' file holds at `index`: never 0, and different for every word.
fn word_at(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn page_bytes(page: u32) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    for (index, into) in (u64::from(page) * WORDS_PER_PAGE..).zip(bytes.as_chunks_mut::<8>().0) {
        *into = word_at(index).to_le_bytes();
    }
    bytes
}

#[test]
fn a_table_keeps_what_it_is_given_and_says_what_it_lacks() {
    let table = PagedTable::new(10 * WORDS_PER_PAGE - 7, 4);
    assert_eq!((table.pages(), table.resident_pages_max()), (10, 4));
    assert_eq!(table.get(0), None);
    assert!(table.fill(3, &page_bytes(3)));
    for index in 3 * WORDS_PER_PAGE..4 * WORDS_PER_PAGE {
        assert_eq!(table.get(index), Some(word_at(index)));
    }
    assert_eq!((table.get(3 * WORDS_PER_PAGE - 1), table.get(4 * WORDS_PER_PAGE)), (None, None));
    let mut out = [0; PAGE_BYTES];
    assert!(table.copy_out(3, &mut out));
    assert_eq!(out, page_bytes(3));
    assert!(!table.copy_out(2, &mut out));
    assert!(!table.set(0, 1), "a page that is not resident cannot be changed");
}

#[test]
fn a_page_of_zeros_takes_no_memory_until_it_is_changed() {
    let table = PagedTable::new(1 << 23, 64);
    table.fill_zeros(5);
    let empty = table.memory_bytes();
    for page in 0..1000 {
        table.fill_zeros(page);
        assert!(table.is_zeros(page) && table.is_resident(page));
    }
    assert!(table.fill(1000, &[0; PAGE_BYTES]));
    assert!(table.is_zeros(1000));
    assert_eq!(table.memory_bytes(), empty, "zeros need their piece of the directory only");
    assert_eq!(table.get(7 * WORDS_PER_PAGE + 3), Some(0));
    assert!(table.set(7 * WORDS_PER_PAGE + 3, 42));
    assert!(!table.is_zeros(7));
    assert_eq!((table.get(7 * WORDS_PER_PAGE + 3), table.get(7 * WORDS_PER_PAGE + 4)), (Some(42), Some(0)));
    assert!(table.memory_bytes() > empty);
    let mut out = [1; PAGE_BYTES];
    assert!(table.copy_out(6, &mut out));
    assert_eq!(out, [0; PAGE_BYTES]);
}

#[test]
fn what_is_resident_is_not_overwritten_by_a_later_load() {
    let table = PagedTable::new(4 * WORDS_PER_PAGE, 4);
    assert!(table.fill(1, &page_bytes(1)));
    assert!(table.set(WORDS_PER_PAGE, 99));
    assert!(table.fill(1, &page_bytes(1)));
    table.fill_zeros(1);
    assert_eq!(table.get(WORDS_PER_PAGE), Some(99));
    table.fill_zeros(2);
    assert!(table.fill(2, &page_bytes(2)));
    assert_eq!(table.get(2 * WORDS_PER_PAGE), Some(0));
}

#[test]
fn no_more_pages_are_resident_than_allowed_and_those_that_are_used_stay() {
    let table = PagedTable::new(100 * WORDS_PER_PAGE, 8);
    for page in 0..100 {
        assert!(table.fill(page, &page_bytes(page)));
        let resident = (0..100).filter(|page| table.is_resident(*page)).count();
        assert_eq!(resident as u32, (page + 1).min(8));
        assert_eq!(table.get(0), Some(word_at(0)), "page 0 is used all the time");
        assert!(table.is_resident(page));
    }
}

#[test]
fn pinned_pages_stay_and_leave_room_for_one_more() {
    let table = PagedTable::new(100 * WORDS_PER_PAGE, 8);
    assert_eq!(table.pins_max(), 7);
    assert_eq!(table.pin(0), Err(PinRefused::NotResident));
    for page in 0..7 {
        assert!(table.fill(page, &page_bytes(page)));
        assert_eq!(table.pin(page), Ok(()));
        assert!(table.set(u64::from(page) * WORDS_PER_PAGE, 7));
    }
    for page in 7..100 {
        assert!(table.fill(page, &page_bytes(page)), "a load finds a slot whatever is pinned");
        assert_eq!(table.pin(page), Err(PinRefused::TooMany));
        assert_eq!(
            table.get(u64::from(page) * WORDS_PER_PAGE + 1),
            Some(word_at(u64::from(page) * WORDS_PER_PAGE + 1))
        );
    }
    for page in 0..7u32 {
        assert_eq!(table.get(u64::from(page) * WORDS_PER_PAGE), Some(7));
    }
    assert_eq!(table.pages_pinned(), 7);
    assert_eq!(table.pin(0), Ok(()), "a page that is pinned can be pinned again");
    table.unpin(0);
    for page in 0..7 {
        table.unpin(page);
    }
    assert_eq!(table.pages_pinned(), 0);
    for page in 50..80 {
        assert!(table.fill(page, &page_bytes(page)));
    }
    assert!((0..7).all(|page| !table.is_resident(page)), "what is no longer pinned goes");
}

#[test]
fn a_table_follows_a_naive_one_through_random_histories() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let pages = random.within(1..40);
        let table = PagedTable::new(pages * WORDS_PER_PAGE, random.within(2..12) as u32);
        let mut file: Vec<u64> = (0..pages * WORDS_PER_PAGE).map(|_| 0).collect();
        for page in 0..pages {
            if random.below(3) > 0 {
                (page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE).for_each(|i| file[i as usize] = random.word());
            }
        }
        for _ in 0..4000 {
            let index = random.below(pages * WORDS_PER_PAGE);
            let page = (index / WORDS_PER_PAGE) as u32;
            let in_file = |file: &[u64]| {
                let mut bytes = [0; PAGE_BYTES];
                let words = &file[page as usize * WORDS_PER_PAGE as usize..];
                words.iter().zip(bytes.as_chunks_mut::<8>().0).for_each(|(word, into)| *into = word.to_le_bytes());
                bytes
            };
            match random.below(3) {
                0 => match table.get(index) {
                    Some(word) => assert_eq!(word, file[index as usize], "seed {seed}"),
                    None => assert!(table.fill(page, &in_file(&file))),
                },
                1 => {
                    let word = random.below(5);
                    if table.set(index, word) {
                        file[index as usize] = word;
                    } else {
                        assert!(!table.is_resident(page), "seed {seed}");
                    }
                }
                _ => {
                    let mut out = [0; PAGE_BYTES];
                    if table.copy_out(page, &mut out) {
                        assert_eq!(out, in_file(&file), "seed {seed}");
                    }
                }
            }
        }
    }
}

/// How long threads are set against each other.
const CONTEST: Duration = Duration::from_millis(700);

/// Ends the contest also when somebody has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fill pages that are not resident, one after the other, until told to stop.
fn come_and_go(table: &PagedTable, contents: &[[u8; PAGE_BYTES]], from: u32, stop: &AtomicBool) {
    let mut page = from;
    while !stop.load(Ordering::Relaxed) {
        page = if page + 1 == table.pages() { from } else { page + 1 };
        if !table.is_resident(page) {
            table.fill(page, &contents[page as usize]);
        }
    }
}

/// Readers never see another page's word or a torn page while two threads fill and evict, and the words of a page that
/// is written never go back. More threads than processors: what goes wrong needs a reader that is stopped at a bad
/// moment.
#[test]
fn readers_see_only_right_words_while_pages_come_and_go() {
    const PAGES: u64 = 6;
    let table = PagedTable::new(PAGES * WORDS_PER_PAGE, 3);
    let contents: Vec<_> = (0..PAGES as u32).map(page_bytes).collect();
    let (stop, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    // Page 0 belongs to the writer, which counts up in its first word, then in its last; it is never evicted.
    assert!(table.fill(0, &[1; PAGE_BYTES]));
    table.pin(0).unwrap();
    let [first, last] = [0, WORDS_PER_PAGE - 1];
    assert!(table.set(first, 0) && table.set(last, 0));
    thread::scope(|scope| {
        let (table, contents, stop, hits) = (&table, &contents, &stop, &hits);
        for seed in 0..4 {
            scope.spawn(move || {
                let _stop = Stop(stop);
                let (mut random, mut seen) = (Random::new(seed), 0);
                let mut out = [0; PAGE_BYTES];
                while !stop.load(Ordering::Relaxed) {
                    let index = random.within(WORDS_PER_PAGE..PAGES * WORDS_PER_PAGE);
                    for _ in 0..200 {
                        if let Some(word) = table.get(index) {
                            assert_eq!(word, word_at(index));
                            seen += 1;
                        }
                    }
                    let page = (index / WORDS_PER_PAGE) as usize;
                    if seed == 0 && table.copy_out(page as u32, &mut out) {
                        assert!(out == contents[page], "a torn page");
                    }
                }
                hits.fetch_add(seen, Ordering::Relaxed);
            });
        }
        scope.spawn(move || {
            let _stop = Stop(stop);
            while !stop.load(Ordering::Relaxed) {
                let [after, before] = [last, first].map(|index| table.get(index).expect("it is pinned"));
                assert!(after <= before, "{after} was stored after {before}");
            }
        });
        for from in [1, 1] {
            scope.spawn(move || come_and_go(table, contents, from, stop));
        }
        let _stop = Stop(stop);
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < CONTEST && !stop.load(Ordering::Relaxed) {
            count += 1;
            assert!(table.set(first, count) && table.set(last, count));
        }
    });
    assert!(hits.load(Ordering::Relaxed) > 1000);
}

/// Pinning races with eviction: whoever has pinned a page finds it there, unchanged in place, until it unpins.
#[test]
fn a_pinned_page_is_there_even_when_it_was_about_to_go() {
    const PAGES: u64 = 5;
    let table = PagedTable::new(PAGES * WORDS_PER_PAGE, 3);
    let contents: Vec<_> = (0..PAGES as u32).map(page_bytes).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (table, contents, stop) = (&table, &contents, &stop);
        for from in [0, 0] {
            scope.spawn(move || come_and_go(table, contents, from, stop));
        }
        let _stop = Stop(stop);
        let (start, mut pinned, mut page) = (Instant::now(), 0, 0);
        while start.elapsed() < CONTEST || pinned < 1000 {
            page = (page + 1) % PAGES as u32;
            if table.pin(page).is_err() {
                continue;
            }
            pinned += 1;
            let index = u64::from(page) * WORDS_PER_PAGE;
            for _ in 0..10 {
                assert_eq!(table.get(index), Some(word_at(index)));
            }
            table.unpin(page);
        }
    });
    assert_eq!(table.pages_pinned(), 0);
}
