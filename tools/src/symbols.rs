//! Names for the addresses of the hypervisor's backtraces.

use addr2line::Loader;
use std::path::Path;

/// `line` with the function and the source line behind each address that it shows as `at 0x…`.
pub fn symbolize(line: &str, loader: Option<&Loader>) -> String {
    let address = line.trim_start().strip_prefix("at 0x").and_then(|rest| {
        let hex = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
        u64::from_str_radix(hex, 16).ok()
    });
    let (Some(address), Some(loader)) = (address, loader) else { return line.to_owned() };
    // A return address may be that of the next line: look for the call before it.
    let mut out = line.to_owned();
    let Ok(mut frames) = loader.find_frames(address.saturating_sub(1)) else { return out };
    while let Ok(Some(frame)) = frames.next() {
        let function = frame.function.as_ref().and_then(|f| f.demangle().ok().map(std::borrow::Cow::into_owned));
        out.push_str(&format!("  {}", function.as_deref().unwrap_or("?")));
        if let Some(place) = frame.location {
            let file = place.file.unwrap_or("?");
            out.push_str(&format!(" ({file}:{})", place.line.unwrap_or(0)));
        }
    }
    out
}

/// The debug information of the hypervisor's image, if it can be read.
pub fn load(image: &Path) -> Option<Loader> {
    Loader::new(image).ok()
}
