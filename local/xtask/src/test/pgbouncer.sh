# Builds the PgBouncer of Debian 13 (1.24: prepared statements in transaction mode) into the folder $1. The package lists
# of the machine stay as they are: this one has its own.
set -eu
folder=$1
mkdir -p "$folder/apt/lists/partial" "$folder/source"
# The mirror is the one from which this machine's own packages come.
mirror=$(apt-cache policy libc6 | sed -n 's,^ *[0-9]* \(http[^ ]*\) .*/main .*,\1,p' | head -n 1)
test -n "$mirror"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keyring] $mirror trixie main" >"$folder/apt/sources.list"
apt="-o Dir::Etc::SourceList=$folder/apt/sources.list -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$folder/apt/lists -o APT::Sandbox::User=root"
# Files below the cache have no blanks in their names.
apt-get $apt update -qq
cd "$folder/source"
apt-get $apt source -qq --download-only pgbouncer
dpkg-source --no-check -x pgbouncer_*.dsc tree
cd tree
./configure --without-cares --without-pam --without-systemd --without-ldap
make -s pgbouncer
cp pgbouncer "$folder/pgbouncer"
rm -rf "$folder/apt" "$folder/source"
