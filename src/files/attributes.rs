//! What a file keeps when its content is replaced: mode, owner, group, ACL and extended attributes.
//!
//! Not what any write takes away: set-user-id and set-group-id, capabilities, and sums that the kernel has made of the
//! old content.

use std::ffi::CStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Gid, Uid, fchown};

use tl_os::xattr;

/// Attributes that belong to the old content.
const OF_THE_CONTENT: [&CStr; 3] = [c"security.capability", c"security.ima", c"security.evm"];

/// The bits of a mode that a write leaves.
pub(super) const MODE: u32 = 0o1777;

/// Gives `new` everything that the file `old` has. False where this thread cannot see or give all of it; then `new` has
/// some of it, and must not take the place of `old`.
pub(super) fn keep(new: &File, old: impl AsFd) -> io::Result<bool> {
    let found = fstat(&old)?;
    if !keep_owner(new, &found)? || !keep_extended(new, old) {
        return Ok(false);
    }
    // Last: the group's bits of a file with an ACL are its mask, which the ACL has to be there for.
    Ok(keep_mode(new, &found))
}

/// Gives `new` the owner and group of what was found. False where this thread cannot.
pub(super) fn keep_owner(new: &File, found: &FileStat) -> io::Result<bool> {
    let own = fstat(new)?;
    if (own.st_uid, own.st_gid) == (found.st_uid, found.st_gid) {
        return Ok(true);
    }
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    // To the group alone, where the owner is right: asking for both needs the right to either.
    let uid = (own.st_uid != found.st_uid).then_some(uid);
    let gid = (own.st_gid != found.st_gid).then_some(gid);
    Ok(fchown(new, uid, gid).is_ok())
}

/// Gives `new` the mode of what was found, without set-user-id and set-group-id.
pub(super) fn keep_mode(new: &File, found: &FileStat) -> bool {
    let mode = found.st_mode & MODE;
    new.set_permissions(Permissions::from_mode(mode)).is_ok()
        // Some file systems know few modes, and may have given this one by themselves.
        || fstat(new).is_ok_and(|own| own.st_mode & 0o7777 == mode)
}

fn keep_extended(new: &File, old: impl AsFd) -> bool {
    let Ok(mut names) = xattr::list(&old) else { return false };
    // Listed or not.
    if !names.iter().any(|name| **name == *xattr::ACL) {
        names.push(xattr::ACL.to_owned());
    }
    names.retain(|name| !OF_THE_CONTENT.contains(&&**name));
    names.iter().all(|name| {
        let (Ok(wanted), Ok(own)) = (xattr::get(&old, name), xattr::get(new, name)) else { return false };
        match wanted {
            wanted if wanted == own => true,
            Some(value) => xattr::set(new, name, &value).is_ok(),
            // The directory's default ACL has given the new file one.
            None => xattr::remove(new, name).is_ok(),
        }
    })
}
