//! User items: what is set is there, limits are named, and everything else in the file stays as it was.

use lunaring::vhdx::format::Guid;
use lunaring::vhdx::{
    DiskKind, EditError, MetadataItem, NewParent, check, delete_item, get_item, inherited_items, list_items, set_item,
    set_parent,
};

use crate::hand::{child, child_options, dynamic, locator, made, put_block, source};
use crate::vhdx_support::{MIB, Random, SparseFile, create_options};

fn id(number: u64) -> Guid {
    Guid::from_u128(0x4c55_4e41_0000_0000_0000_0000_0000_0000 | u128::from(number))
}

fn set(file: &mut SparseFile, number: u64, bytes: &[u8]) -> Result<(), EditError> {
    set_item(file, source(number), id(number), false, bytes)
}

fn assert_sound(file: &SparseFile) {
    let report = check(&mut file.clone()).expect("read");
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// A few hundred random changes, held against a list of what should be there.
#[test]
fn a_history_of_items_is_what_it_should_be() {
    for seed in 0..4 {
        let (mut file, mut random) = (dynamic(4 * MIB), Random(seed));
        let at = put_block(&mut file, 2, 6);
        file.write(at, &[0x5c; 4096]);
        let mut expected: Vec<(Guid, Vec<u8>)> = Vec::new();
        for step in 0..120 {
            let number = random.below(24);
            let known = expected.iter().position(|(item, _)| *item == id(number));
            if random.below(4) == 0 {
                let result = delete_item(&mut file, source(step), id(number));
                match known {
                    Some(at) => assert_eq!((result, expected.remove(at).0), (Ok(()), id(number))),
                    None => assert_eq!(result, Err(EditError::NoItem { id: id(number) })),
                }
            } else {
                let len = [0, 1, 8, 4096, 5000, 131_072, 131_073, 400_000, 1 << 20][random.below(9) as usize];
                let bytes: Vec<u8> = (0..len).map(|at| (at as u64 ^ step) as u8).collect();
                set(&mut file, number, &bytes).expect("fits");
                match known {
                    Some(at) => expected[at].1 = bytes,
                    None => expected.push((id(number), bytes)),
                }
            }
            if step % 10 == 0 {
                assert_sound(&file);
            }
        }
        assert_sound(&file);
        let listed = list_items(&mut file).expect("read");
        assert_eq!(listed.len(), expected.len());
        for (item, bytes) in &expected {
            assert_eq!(get_item(&mut file, *item).expect("read").as_ref(), Some(bytes));
            assert!(listed.iter().any(|entry| entry.id == *item && entry.len_bytes == bytes.len() as u64));
        }
        assert_eq!(get_item(&mut file, id(99)), Ok(None));
        let mut content = [0; 4096];
        file.read(at, &mut content);
        assert_eq!(content, [0x5c; 4096], "blocks stay where they are");
    }
}

#[test]
fn limits_are_named() {
    let mut file = dynamic(4 * MIB);
    let long = set(&mut file, 1, &vec![0; (1 << 20) + 1]).expect_err("refused");
    assert_eq!(long, EditError::ItemTooLong { len_bytes: (1 << 20) + 1 });
    for number in 0..1024 {
        set(&mut file, number, &number.to_le_bytes()).expect("fits");
    }
    assert_eq!(set(&mut file, 1024, b"one more"), Err(EditError::TooManyItems { count: 1024 }));
    set(&mut file, 7, b"another value for one that is there").expect("fits");
    assert_sound(&file);
    let mut file = dynamic(4 * MIB);
    for number in 0..40 {
        set(&mut file, number, &vec![number as u8; 1 << 20]).expect("fits");
    }
    assert_eq!(set(&mut file, 40, b"x"), Err(EditError::ItemsTooLong { len_bytes: (40 << 20) + 1 }));
    assert_sound(&file);
    assert_eq!(get_item(&mut file, id(39)), Ok(Some(vec![39; 1 << 20])));
}

/// Section 2.6.1.2: a child takes over what belongs to the virtual disk.
#[test]
fn children_inherit_the_items_of_the_virtual_disk() {
    let mut parent = made(&create_options(8 * MIB, DiskKind::Dynamic, MIB));
    set_item(&mut parent, source(1), id(1), true, b"of the disk").expect("sets");
    set_item(&mut parent, source(2), id(2), false, b"of the file").expect("sets");
    let items = inherited_items(&mut parent).expect("read");
    let expected = MetadataItem { id: id(1), is_user: true, is_virtual_disk: true, bytes: b"of the disk".to_vec() };
    assert_eq!(items, [expected]);
    let mut options = child_options(8 * MIB, 8 * MIB, MIB);
    let parent = NewParent { items, ..options.parent.take().expect("a child") };
    options.parent = Some(parent);
    let mut child = made(&options);
    assert_eq!(get_item(&mut child, id(1)), Ok(Some(b"of the disk".to_vec())));
    assert_eq!(list_items(&mut child).map(|items| items.len()), Ok(1));
}

#[test]
fn the_parent_can_be_another() {
    let mut file = child(6 * MIB);
    for name in ["a.vhdx", &"long/".repeat(4000), "b"] {
        set_parent(&mut file, source(1), &locator(name)).expect("sets");
        let report = check(&mut file).expect("read");
        assert_eq!(report.parent, Some(locator(name)));
        assert!(report.is_sound() && report.findings.is_empty(), "{:?}", report.findings);
    }
    assert_eq!(set_parent(&mut dynamic(4 * MIB), source(1), &locator("x")), Err(EditError::NoParent));
}
