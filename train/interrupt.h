#pragma once

namespace nibble {

/// From now on the first SIGINT or SIGTERM is only remembered; a second one of the same kind ends the
/// process, which is safe for files at any time.
void catch_interrupts();

/// The signal that came, or 0.
int interrupted_by();

}  // namespace nibble
