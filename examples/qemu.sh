#!/bin/sh
# Boots a machine whose API is on 127.0.0.1:9501, with its console on this terminal. Run `make rootfs` and
# `init/images/fetch.sh qemu` before.
#   [PORT=9501] examples/qemu.sh
#   curl -N -H "Authorization: Bearer $(cat dist/vm.token)" \
#       http://127.0.0.1:9501/api/v1/processes/run -d '{"command": "uname", "args": ["-a"]}'
set -eu
cd "$(dirname "$0")/.."
# With KVM, use `-accel kvm` instead of `-accel tcg`, and leave out `maxcpus=2` and `no_timer_check`, which only
# emulation needs (tests/vm/machine.py).
exec .cache/vm/qemu-system-x86_64 -nodefaults -no-user-config -accel tcg -machine q35 -cpu max -smp 1,maxcpus=2 -m 256 \
    -display none -serial stdio -no-reboot -kernel .cache/vm/vmlinux -initrd dist/vm.cpio -append 'console=ttyS0 panic=-1 no_timer_check' \
    -device vmxnet3,netdev=net,romfile= -netdev "user,id=net,hostfwd=tcp:127.0.0.1:${PORT:-9501}-:9501"
