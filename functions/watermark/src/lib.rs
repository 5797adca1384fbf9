//! Function: watermark.
