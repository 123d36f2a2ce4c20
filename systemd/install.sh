#!/bin/sh
# Lays vnp out below DESTDIR: its environment, commands, units, user, folders, configuration.
# Usage: install.sh DESTDIR PREFIX. Again is an upgrade; what an admin has changed in /etc stays.
set -eu
umask 022
dest=$1 prefix=$2
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
units=$dest/usr/lib/systemd/system
case $prefix in /*) ;; *) echo "install: PREFIX must be an absolute path" >&2; exit 64 ;; esac
command -v "$PYTHON" >/dev/null || { echo "install: $PYTHON not found; make install PYTHON=python3" >&2; exit 78; }
folder=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')
while [ "$folder" != / ]; do
	case $(stat -Lc %A "$folder") in *x | *t) ;; *)
		echo "install: other users cannot enter $folder, where $PYTHON lives; make install PYTHON=/usr/bin/python3" >&2
		exit 78 ;;
	esac
	folder=$(dirname "$folder")
done
mkdir -p "$dest$prefix/bin" "$dest$prefix/share/doc/vnp" "$units" 2>/dev/null ||
	{ echo "install: cannot write to $dest$prefix and $units; run as root, or set DESTDIR" >&2; exit 77; }

"$PYTHON" -m venv "$dest$prefix/venv"
pip() { "$dest$prefix/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install -r "$here/requirements.lock"
pip install --no-deps --no-build-isolation --force-reinstall "$here"
# Commands of the environment name their interpreter by its path, which has no DESTDIR in it later.
for name in vnp vnpd vnp-submit vnp-redis; do
	sed -i "1s|.*|#!$prefix/venv/bin/python|" "$dest$prefix/venv/bin/$name"
	ln -sf ../venv/bin/$name "$dest$prefix/bin/$name"
done
for name in vnp vnp-submit; do
	mkdir -p "$dest/usr/local/bin"
	ln -sf "$prefix/bin/$name" "$dest/usr/local/bin/$name"
done
cp "$here"/docs/*.md "$dest$prefix/share/doc/vnp/"

for unit in "$here"/systemd/*.service "$here"/systemd/*.target; do
	sed "s|@PREFIX@|$prefix|g" "$unit" >"$units/$(basename "$unit")"
done
install -D -m 644 "$here/systemd/vnp.sysusers.conf" "$dest/usr/lib/sysusers.d/vnp.conf"
install -D -m 644 "$here/systemd/vnp.tmpfiles.conf" "$dest/usr/lib/tmpfiles.d/vnp.conf"
[ -e "$dest/etc/vnp/vnp.toml" ] || install -D -m 644 "$here/systemd/vnp.toml" "$dest/etc/vnp/vnp.toml"

if [ -z "$dest" ] && [ -d /run/systemd/system ]; then
	systemd-sysusers vnp.conf
	systemd-tmpfiles --create vnp.conf
	systemctl daemon-reload
fi
echo "vnp is installed. Who may submit: usermod -aG vnp NAME. Start: systemctl enable --now vnp.target vnp"
