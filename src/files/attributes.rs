//! Copies the attributes that a file keeps when its content is replaced: mode, owner, group, ACL and extended
//! attributes.
//!
//! It does not copy what a write into the file would drop too: set-user-id and set-group-id, capabilities, and
//! checksums of the old content.

use std::ffi::CStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Gid, Uid, fchown};

use tl_os::xattr;

/// Extended attributes that belong to the content.
const OF_THE_CONTENT: [&CStr; 3] = [c"security.capability", c"security.ima", c"security.evm"];

/// The bits of a mode that a write into the file keeps.
pub(super) const MODE: u32 = 0o1777;

/// Copies all attributes of `old` to `new`. Returns false if this thread cannot read or set all of them; then `new` has
/// only some, and must not replace `old`.
pub(super) fn keep(new: &File, old: impl AsFd) -> io::Result<bool> {
    let found = fstat(&old)?;
    if !keep_owner(new, &found)? || !keep_extended(new, old) {
        return Ok(false);
    }
    // The mode comes last: in a file with an ACL, the group bits are the ACL's mask.
    Ok(keep_mode(new, &found))
}

/// Sets the owner and group of `new` to those of `found`. Returns false if this thread does not have the permission.
pub(super) fn keep_owner(new: &File, found: &FileStat) -> io::Result<bool> {
    let own = fstat(new)?;
    if (own.st_uid, own.st_gid) == (found.st_uid, found.st_gid) {
        return Ok(true);
    }
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    // Only what differs is set, because setting both needs the permission for both.
    let uid = (own.st_uid != found.st_uid).then_some(uid);
    let gid = (own.st_gid != found.st_gid).then_some(gid);
    Ok(fchown(new, uid, gid).is_ok())
}

/// Sets the mode of `new` to that of `found`, without set-user-id and set-group-id. Returns whether `new` has
/// it.
pub(super) fn keep_mode(new: &File, found: &FileStat) -> bool {
    let mode = found.st_mode & MODE;
    new.set_permissions(Permissions::from_mode(mode)).is_ok()
        // A file system without Unix modes can refuse to set a mode that the file already has.
        || fstat(new).is_ok_and(|own| own.st_mode & 0o7777 == mode)
}

/// Copies the extended attributes, including the ACL. Returns whether `new` has all of them.
fn keep_extended(new: &File, old: impl AsFd) -> bool {
    let Ok(mut names) = xattr::list(&old) else { return false };
    // Some file systems do not list the ACL.
    if !names.iter().any(|name| **name == *xattr::ACL) {
        names.push(xattr::ACL.to_owned());
    }
    names.retain(|name| !OF_THE_CONTENT.contains(&&**name));
    names.iter().all(|name| {
        let (Ok(wanted), Ok(own)) = (xattr::get(&old, name), xattr::get(new, name)) else { return false };
        match wanted {
            wanted if wanted == own => true,
            Some(value) => xattr::set(new, name, &value).is_ok(),
            // `new` has an ACL from the default ACL of its directory, and `old` has none.
            None => xattr::remove(new, name).is_ok(),
        }
    })
}
